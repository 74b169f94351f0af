-- What an audit goes by, and what it leaves that no table has, so that its document can be made
-- again: *_json as the classes of ckptforensics.registry.settings write them. Both are kept for the
-- last run over the same sources.
ALTER TABLE runs ADD COLUMN settings_json TEXT;  -- NULL for 'catalog add', and before this schema
ALTER TABLE runs ADD COLUMN left_json TEXT;      -- NULL while the run has not ended
