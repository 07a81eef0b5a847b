BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE api_keys (
	id VARCHAR(32) NOT NULL, 
	name VARCHAR(100) NOT NULL, 
	role VARCHAR(16) NOT NULL, 
	secret_hash VARCHAR(64) NOT NULL, 
	speaks_for_users BOOLEAN NOT NULL, 
	created_us BIGINT NOT NULL, 
	revoked_us BIGINT, 
	CONSTRAINT pk_api_keys PRIMARY KEY (id), 
	CONSTRAINT uq_api_keys_secret_hash UNIQUE (secret_hash)
);
CREATE TABLE audit (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	at_us BIGINT NOT NULL, 
	actor VARCHAR(64) NOT NULL, 
	act VARCHAR(64) NOT NULL, 
	details JSON NOT NULL
);
CREATE TABLE completions (
	id VARCHAR(64) NOT NULL, 
	user_key VARCHAR(64) NOT NULL, 
	api_key_id VARCHAR(32), 
	conversation_key VARCHAR(64) NOT NULL, 
	messages JSON, 
	tools JSON, 
	completion JSON, 
	finish_reason VARCHAR(32) NOT NULL, 
	model_version VARCHAR(160) NOT NULL, 
	arm VARCHAR(16) NOT NULL, 
	sampling JSON NOT NULL, 
	n_prompt_tokens INTEGER, 
	n_completion_tokens INTEGER, 
	created_us BIGINT NOT NULL, 
	source VARCHAR(64) NOT NULL, 
	source_id VARCHAR(200), 
	erased_us BIGINT, 
	CONSTRAINT pk_completions PRIMARY KEY (id)
);
INSERT INTO "completions" VALUES('chatcmpl-1','u1',NULL,'c1','[{"role":"user","content":"Başkent neresi?"}]',NULL,'{"role":"assistant","content":"İstanbul."}','stop','base-1','champion','{}',NULL,NULL,1795646241131554,'gateway',NULL,NULL);
CREATE TABLE erasures (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	at_us BIGINT NOT NULL, 
	user_key VARCHAR(64) NOT NULL, 
	n_completions INTEGER NOT NULL, 
	n_votes INTEGER NOT NULL, 
	snapshots JSON NOT NULL, 
	versions JSON NOT NULL
);
CREATE TABLE model_versions (
	version VARCHAR(160) NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	location TEXT NOT NULL, 
	parent VARCHAR(160), 
	snapshot VARCHAR(64), 
	config JSON NOT NULL, 
	metrics JSON NOT NULL, 
	created_us BIGINT NOT NULL, 
	CONSTRAINT pk_model_versions PRIMARY KEY (version)
);
CREATE TABLE pointers (
	name VARCHAR(32) NOT NULL, 
	version VARCHAR(160) NOT NULL, 
	previous VARCHAR(160), 
	changed_us BIGINT NOT NULL, 
	CONSTRAINT pk_pointers PRIMARY KEY (name), 
	CONSTRAINT fk_pointers_version_model_versions FOREIGN KEY(version) REFERENCES model_versions (version)
);
CREATE TABLE snapshot_completions (
	digest VARCHAR(64) NOT NULL, 
	completion_id VARCHAR(64) NOT NULL, 
	CONSTRAINT pk_snapshot_completions PRIMARY KEY (digest, completion_id), 
	CONSTRAINT fk_snapshot_completions_digest_snapshots FOREIGN KEY(digest) REFERENCES snapshots (digest)
);
CREATE TABLE snapshots (
	digest VARCHAR(64) NOT NULL, 
	path TEXT NOT NULL, 
	n_rows INTEGER NOT NULL, 
	manifest JSON NOT NULL, 
	created_us BIGINT NOT NULL, 
	CONSTRAINT pk_snapshots PRIMARY KEY (digest)
);
CREATE TABLE votes (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	completion_id VARCHAR(64) NOT NULL, 
	user_key VARCHAR(64) NOT NULL, 
	api_key_id VARCHAR(32), 
	kind VARCHAR(16) NOT NULL, 
	label BOOLEAN, 
	score FLOAT, 
	strength FLOAT NOT NULL, 
	reason VARCHAR(64), 
	comment TEXT, 
	correction TEXT, 
	idempotency_key VARCHAR(128), 
	source VARCHAR(64) NOT NULL, 
	source_id VARCHAR(200), 
	created_us BIGINT NOT NULL, 
	CONSTRAINT fk_votes_completion_id_completions FOREIGN KEY(completion_id) REFERENCES completions (id)
);
INSERT INTO "votes" VALUES(1,'chatcmpl-1','u1',NULL,'explicit',1,NULL,1.0,NULL,NULL,NULL,NULL,'gateway',NULL,1795646241183034);
INSERT INTO "votes" VALUES(2,'chatcmpl-1','u1',NULL,'explicit',0,NULL,1.0,'wrong','yanlış 👎',NULL,NULL,'gateway',NULL,1795646242183034);
CREATE INDEX ix_completions_created_us ON completions (created_us);
CREATE INDEX ix_completions_model_version_created_us ON completions (model_version, created_us);
CREATE INDEX ix_completions_user_key_created_us ON completions (user_key, created_us);
CREATE UNIQUE INDEX uq_completions_source_source_id ON completions (source, source_id);
CREATE INDEX ix_snapshot_completions_completion_id ON snapshot_completions (completion_id);
CREATE INDEX ix_votes_completion_id_user_key_kind_id ON votes (completion_id, user_key, kind, id);
CREATE INDEX ix_votes_created_us ON votes (created_us);
CREATE INDEX ix_votes_user_key ON votes (user_key);
CREATE UNIQUE INDEX uq_votes_source_source_id ON votes (source, source_id);
CREATE UNIQUE INDEX uq_votes_idempotency_key_user_key ON votes (idempotency_key, user_key);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('votes',2);
COMMIT;
