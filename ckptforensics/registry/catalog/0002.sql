-- Sketches, by which models are found among many. Row `id` - 1 of the arrays beside the catalog has
-- the sketch's vectors; they are made from sketch_json, and made again where they are missing.
CREATE TABLE sketches (
  id INTEGER PRIMARY KEY,
  sha256 TEXT NOT NULL UNIQUE,   -- of sketch_json
  sketch_json TEXT NOT NULL      -- `tokens` and `heads` of ckptforensics.results.sketch
);
ALTER TABLE models ADD COLUMN sketch INTEGER REFERENCES sketches (id);
CREATE INDEX models_by_sketch ON models (sketch);
