-- What applications send: the texts that benches/scanner.rs reads, and with which the scanner's tests compare it with
-- the slow one. Written for this purpose.

SELECT 1;
select current_timestamp;
BEGIN;
COMMIT;
SELECT id, name, email, created_at FROM users WHERE id = $1;
SELECT "users".* FROM "users" WHERE "users"."email" = 'ada@example.org' AND "users"."deleted_at" IS NULL LIMIT 1;
SELECT "shop_order"."id", "shop_order"."customer_id", "shop_order"."placed_at", "shop_order"."state", "shop_order"."total"
    FROM "shop_order" INNER JOIN "shop_customer" ON ("shop_order"."customer_id" = "shop_customer"."id")
    WHERE ("shop_customer"."city" = 'Oslo' AND "shop_order"."placed_at" >= '2026-01-01T00:00:00+00:00'::timestamptz)
    ORDER BY "shop_order"."placed_at" DESC LIMIT 21;
INSERT INTO events (tenant, kind, payload, happened_at) VALUES ($1, $2, $3::jsonb, now()) RETURNING id;
INSERT INTO lines (order_id, product_id, amount, price) VALUES
    (10017, 3, 2, 19.90), (10017, 8, 1, 5.00), (10017, 21, 12, 0.35), (10017, 4, 1, 129.00), (10017, 77, 3, 7.49)
    ON CONFLICT (order_id, product_id) DO UPDATE SET amount = lines.amount + EXCLUDED.amount;
UPDATE accounts SET balance = balance - 250.00, changed_at = clock_timestamp() WHERE id = 4711 AND balance >= 250.00;
DELETE FROM sessions WHERE expires_at < now() - interval '30 days';
WITH recent AS (
    SELECT customer_id, count(*) AS orders, sum(total) AS spent
    FROM shop_order
    WHERE placed_at > now() - interval '90 days' -- a quarter
    GROUP BY customer_id
    HAVING count(*) > 2
), ranked AS (
    SELECT customer_id, orders, spent, rank() OVER (ORDER BY spent DESC) AS place FROM recent
)
SELECT c.id, c.name, r.orders, r.spent, r.place,
       CASE WHEN r.place <= 10 THEN 'gold' WHEN r.place <= 100 THEN 'silver' ELSE 'bronze' END AS class
FROM ranked r JOIN shop_customer c ON c.id = r.customer_id
WHERE c.name !~* '^(test|demo)' /* nobody's own */ AND c.city = ANY (ARRAY['Oslo', 'Bergen', 'Tromsø'])
ORDER BY r.place, c.name
LIMIT 50 OFFSET 100;
SELECT count(*) FROM (SELECT DISTINCT ON (device_id) device_id, reading, read_at FROM readings ORDER BY device_id, read_at DESC) latest
    WHERE reading BETWEEN 0.5 AND 1e3;
SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attnum
    FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON a.attrelid = c.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = 'shop_order' AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum;
SELECT nextval('order_number'), lastval();
SELECT * FROM jobs WHERE state = 'waiting' AND run_at <= now() ORDER BY priority, id FOR UPDATE SKIP LOCKED LIMIT 1;
SELECT pg_try_advisory_lock(hashtext('nightly report'), 7);
SELECT pg_advisory_unlock_all();
SELECT pg_advisory_xact_lock($1);
SELECT set_config('app.tenant', 'acme', false), set_config($1, $2, true);
SET app.tenant = 'acme';
SET LOCAL statement_timeout TO '5s';
SET SESSION search_path TO tenant_17, public;
SET TIME ZONE 'Europe/Oslo';
RESET search_path;
SHOW transaction_isolation;
SAVEPOINT before_mail;
ROLLBACK TO SAVEPOINT before_mail;
LISTEN job_added;
NOTIFY job_added, '{"id": 17}';
PREPARE by_name (text) AS SELECT id FROM users WHERE name = $1;
EXECUTE by_name('Ada');
DEALLOCATE by_name;
DECLARE rows CURSOR WITH HOLD FOR SELECT * FROM readings;
FETCH FORWARD 1000 FROM rows;
CLOSE rows;
COPY readings (device_id, reading, read_at) TO STDOUT WITH (FORMAT csv, HEADER);
CREATE TEMPORARY TABLE imported (line text, number int) ON COMMIT DROP;
CREATE INDEX CONCURRENTLY IF NOT EXISTS readings_by_device ON readings USING btree (device_id, read_at DESC) WHERE reading IS NOT NULL;
ALTER TABLE shop_order ADD COLUMN IF NOT EXISTS note text NOT NULL DEFAULT E'\'none\'', ADD CONSTRAINT note_size CHECK (length(note) < 2000);
CREATE OR REPLACE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    -- Whoever changes a row changes its time; it's the same for all tables.
    NEW.changed_at := clock_timestamp();
    IF NEW.note = 'done; really' THEN
        PERFORM pg_notify('done', NEW.id::text);
    END IF;
    RETURN NEW;
END
$body$;
DO $$ BEGIN PERFORM 1; END $$;
EXPLAIN (ANALYZE, BUFFERS) SELECT sum(price * amount)::numeric(12, 2) FROM lines WHERE order_id = 10017;
SELECT payload->>'kind' AS kind, payload #> '{a,b}' AS inner, payload @> '{"ok": true}' AS ok FROM events WHERE payload ? 'kind';
SELECT U&'d\0061t\+000061', B'1011', X'1F', N'text', $tag$it's a constant; not a statement$tag$, 'it''s', 1.5e-3, .5, 0x1F, a[1:2], 'a' 'b';
