-- Ten tenants with a schema each, a queue of jobs, and a table with row security.
DO $$ BEGIN
    FOR n IN 0..9 LOOP
        EXECUTE format('CREATE SCHEMA tenant_%s; CREATE TABLE tenant_%s.items AS SELECT %s AS tenant, generate_series(1, 3) AS id', n, n, n);
    END LOOP;
END $$;
CREATE TABLE jobs (id int PRIMARY KEY, done_by text);
CREATE TABLE docs (tenant int, text text);
INSERT INTO docs SELECT n % 10, 'doc ' || n FROM generate_series(0, 99) n;
ALTER TABLE docs ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON docs USING (tenant = current_setting('app.tenant')::int);
CREATE ROLE application LOGIN;
GRANT SELECT ON docs TO application;
GRANT ALL ON jobs TO application;
