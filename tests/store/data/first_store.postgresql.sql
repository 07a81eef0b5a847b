CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.api_keys (
    id character varying(32) NOT NULL,
    name character varying(100) NOT NULL,
    role character varying(16) NOT NULL,
    secret_hash character varying(64) NOT NULL,
    speaks_for_users boolean NOT NULL,
    created_us bigint NOT NULL,
    revoked_us bigint
);
CREATE TABLE public.audit (
    id bigint NOT NULL,
    at_us bigint NOT NULL,
    actor character varying(64) NOT NULL,
    act character varying(64) NOT NULL,
    details json NOT NULL
);
CREATE SEQUENCE public.audit_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.audit_id_seq OWNED BY public.audit.id;
CREATE TABLE public.completions (
    id character varying(64) NOT NULL,
    user_key character varying(64) NOT NULL,
    api_key_id character varying(32),
    conversation_key character varying(64) NOT NULL,
    messages json,
    tools json,
    completion json,
    finish_reason character varying(32) NOT NULL,
    model_version character varying(160) NOT NULL,
    arm character varying(16) NOT NULL,
    sampling json NOT NULL,
    n_prompt_tokens integer,
    n_completion_tokens integer,
    created_us bigint NOT NULL,
    source character varying(64) NOT NULL,
    source_id character varying(200),
    erased_us bigint
);
CREATE TABLE public.erasures (
    id bigint NOT NULL,
    at_us bigint NOT NULL,
    user_key character varying(64) NOT NULL,
    n_completions integer NOT NULL,
    n_votes integer NOT NULL,
    snapshots json NOT NULL,
    versions json NOT NULL
);
CREATE SEQUENCE public.erasures_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.erasures_id_seq OWNED BY public.erasures.id;
CREATE TABLE public.model_versions (
    version character varying(160) NOT NULL,
    kind character varying(16) NOT NULL,
    location text NOT NULL,
    parent character varying(160),
    snapshot character varying(64),
    config json NOT NULL,
    metrics json NOT NULL,
    created_us bigint NOT NULL
);
CREATE TABLE public.pointers (
    name character varying(32) NOT NULL,
    version character varying(160) NOT NULL,
    previous character varying(160),
    changed_us bigint NOT NULL
);
CREATE TABLE public.snapshot_completions (
    digest character varying(64) NOT NULL,
    completion_id character varying(64) NOT NULL
);
CREATE TABLE public.snapshots (
    digest character varying(64) NOT NULL,
    path text NOT NULL,
    n_rows integer NOT NULL,
    manifest json NOT NULL,
    created_us bigint NOT NULL
);
CREATE TABLE public.votes (
    id bigint NOT NULL,
    completion_id character varying(64) NOT NULL,
    user_key character varying(64) NOT NULL,
    api_key_id character varying(32),
    kind character varying(16) NOT NULL,
    label boolean,
    score double precision,
    strength double precision NOT NULL,
    reason character varying(64),
    comment text,
    correction text,
    idempotency_key character varying(128),
    source character varying(64) NOT NULL,
    source_id character varying(200),
    created_us bigint NOT NULL
);
CREATE SEQUENCE public.votes_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.votes_id_seq OWNED BY public.votes.id;
ALTER TABLE ONLY public.audit ALTER COLUMN id SET DEFAULT nextval('public.audit_id_seq'::regclass);
ALTER TABLE ONLY public.erasures ALTER COLUMN id SET DEFAULT nextval('public.erasures_id_seq'::regclass);
ALTER TABLE ONLY public.votes ALTER COLUMN id SET DEFAULT nextval('public.votes_id_seq'::regclass);
INSERT INTO public.alembic_version VALUES ('0001');
INSERT INTO public.completions VALUES ('chatcmpl-1', 'u1', NULL, 'c1', '[{"role":"user","content":"Başkent neresi?"}]', NULL, '{"role":"assistant","content":"İstanbul."}', 'stop', 'base-1', 'champion', '{}', NULL, NULL, 1795646241131554, 'gateway', NULL, NULL);
INSERT INTO public.votes VALUES (1, 'chatcmpl-1', 'u1', NULL, 'explicit', true, NULL, 1, NULL, NULL, NULL, NULL, 'gateway', NULL, 1795646241183034);
INSERT INTO public.votes VALUES (2, 'chatcmpl-1', 'u1', NULL, 'explicit', false, NULL, 1, 'wrong', 'yanlış 👎', NULL, NULL, 'gateway', NULL, 1795646242183034);
SELECT pg_catalog.setval('public.audit_id_seq', 1, false);
SELECT pg_catalog.setval('public.erasures_id_seq', 1, false);
SELECT pg_catalog.setval('public.votes_id_seq', 2, true);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT pk_api_keys PRIMARY KEY (id);
ALTER TABLE ONLY public.audit
    ADD CONSTRAINT pk_audit PRIMARY KEY (id);
ALTER TABLE ONLY public.completions
    ADD CONSTRAINT pk_completions PRIMARY KEY (id);
ALTER TABLE ONLY public.erasures
    ADD CONSTRAINT pk_erasures PRIMARY KEY (id);
ALTER TABLE ONLY public.model_versions
    ADD CONSTRAINT pk_model_versions PRIMARY KEY (version);
ALTER TABLE ONLY public.pointers
    ADD CONSTRAINT pk_pointers PRIMARY KEY (name);
ALTER TABLE ONLY public.snapshot_completions
    ADD CONSTRAINT pk_snapshot_completions PRIMARY KEY (digest, completion_id);
ALTER TABLE ONLY public.snapshots
    ADD CONSTRAINT pk_snapshots PRIMARY KEY (digest);
ALTER TABLE ONLY public.votes
    ADD CONSTRAINT pk_votes PRIMARY KEY (id);
ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT uq_api_keys_secret_hash UNIQUE (secret_hash);
CREATE INDEX ix_completions_created_us ON public.completions USING btree (created_us);
CREATE INDEX ix_completions_model_version_created_us ON public.completions USING btree (model_version, created_us);
CREATE INDEX ix_completions_user_key_created_us ON public.completions USING btree (user_key, created_us);
CREATE INDEX ix_snapshot_completions_completion_id ON public.snapshot_completions USING btree (completion_id);
CREATE INDEX ix_votes_completion_id_user_key_kind_id ON public.votes USING btree (completion_id, user_key, kind, id);
CREATE INDEX ix_votes_created_us ON public.votes USING btree (created_us);
CREATE INDEX ix_votes_user_key ON public.votes USING btree (user_key);
CREATE UNIQUE INDEX uq_completions_source_source_id ON public.completions USING btree (source, source_id);
CREATE UNIQUE INDEX uq_votes_idempotency_key_user_key ON public.votes USING btree (idempotency_key, user_key);
CREATE UNIQUE INDEX uq_votes_source_source_id ON public.votes USING btree (source, source_id);
ALTER TABLE ONLY public.pointers
    ADD CONSTRAINT fk_pointers_version_model_versions FOREIGN KEY (version) REFERENCES public.model_versions(version);
ALTER TABLE ONLY public.snapshot_completions
    ADD CONSTRAINT fk_snapshot_completions_digest_snapshots FOREIGN KEY (digest) REFERENCES public.snapshots(digest);
ALTER TABLE ONLY public.votes
    ADD CONSTRAINT fk_votes_completion_id_completions FOREIGN KEY (completion_id) REFERENCES public.completions(id);
