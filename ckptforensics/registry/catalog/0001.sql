-- The first schema. Times are UTC (ISO 8601), digests lower-case hex, *_json as the classes of
-- ckptforensics.registry.reading and ckptforensics.results write them.
CREATE TABLE runs (
  id INTEGER PRIMARY KEY,
  started TEXT NOT NULL,
  ended TEXT,
  seconds REAL,                  -- of the process that ended it
  read_models INTEGER,           -- what that process read, and compared
  read_bytes INTEGER,
  compared INTEGER,
  tool_version TEXT NOT NULL,
  sources_json TEXT NOT NULL
);

CREATE TABLE signatures (
  sha256 TEXT PRIMARY KEY,       -- of the file below the folder of arrays
  fingerprint TEXT,
  hidden_size INTEGER NOT NULL,
  bytes INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE models (
  id INTEGER PRIMARY KEY,
  place TEXT NOT NULL UNIQUE,    -- store and path: what identifies a model from run to run
  name TEXT NOT NULL,
  store TEXT NOT NULL,
  path TEXT NOT NULL,
  opens TEXT,
  adapter INTEGER NOT NULL,
  "commit" TEXT,
  state TEXT NOT NULL CHECK (state IN ('signed', 'headers', 'unread', 'vanished')),
  listed TEXT,                   -- digest of the listing, of the code and of how it was read
  code TEXT,                     -- digest of the code that read it
  weights TEXT,                  -- digest of the weight files together
  signature TEXT REFERENCES signatures (sha256),
  reading_json TEXT NOT NULL,
  first_run INTEGER REFERENCES runs (id),
  last_run INTEGER REFERENCES runs (id)
);
CREATE INDEX models_by_name ON models (name);
CREATE INDEX models_by_weights ON models (weights);

CREATE TABLE files (
  model INTEGER NOT NULL REFERENCES models (id) ON DELETE CASCADE,
  name TEXT NOT NULL,
  role TEXT NOT NULL,
  bytes INTEGER NOT NULL,
  changed TEXT NOT NULL,
  stated TEXT,
  sha256 TEXT,
  PRIMARY KEY (model, name)
) WITHOUT ROWID;
CREATE INDEX files_by_state ON files (changed);

CREATE TABLE claims (
  model INTEGER NOT NULL REFERENCES models (id) ON DELETE CASCADE,
  parent TEXT NOT NULL,
  relation TEXT,
  source TEXT NOT NULL,
  line INTEGER
);
CREATE INDEX claims_by_model ON claims (model);

-- What compare says of two models, by the digests of their weights and of the code that measured:
-- a model that moves keeps its relations.
CREATE TABLE relations (
  a TEXT NOT NULL,
  b TEXT NOT NULL,
  code TEXT NOT NULL,
  verdict TEXT,                  -- NULL where the comparison failed
  pair_json TEXT,
  failure TEXT,
  PRIMARY KEY (a, b, code)
) WITHOUT ROWID;

CREATE TABLE findings (
  id TEXT PRIMARY KEY,
  model INTEGER REFERENCES models (id) ON DELETE CASCADE, -- NULL: the policy's own
  rule TEXT NOT NULL,
  severity TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('open', 'fixed', 'not checked')),
  finding_json TEXT NOT NULL,
  first_run INTEGER NOT NULL REFERENCES runs (id),
  last_run INTEGER NOT NULL REFERENCES runs (id)
) WITHOUT ROWID;
CREATE INDEX findings_by_model ON findings (model);
