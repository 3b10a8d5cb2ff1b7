// postgres.js: it pipelines by itself, prepares every query, and has LISTEN and cursors of its own.
import assert from "node:assert";
import postgres from "postgres";

const sql = postgres(process.env.DSN, { max: 8, onnotice: () => {} });
const answers = await Promise.all(Array.from({ length: 300 }, (_, n) => sql`SELECT ${n}::int + 1 AS n`));
assert.deepEqual(answers.map((rows) => rows[0].n), Array.from({ length: 300 }, (_, n) => n + 1));

await Promise.all(
  Array.from({ length: 10 }, (_, number) =>
    sql.begin(async (sql) => {
      await sql.unsafe(`SET LOCAL search_path TO tenant_${number}`);
      const [one, two] = await Promise.all([sql`SELECT DISTINCT tenant FROM items`, sql`SELECT count(*)::int AS n FROM items`]);
      assert.deepEqual([one[0].tenant, two[0].n], [number, 3]);
      await sql.savepoint(async (sql) => sql`SELECT 1/0`).catch((error) => assert.equal(error.code, "22012"));
      assert.equal((await sql`SELECT max(id) AS id FROM items`)[0].id, 3);
    }),
  ),
);

let count = 0;
await sql`SELECT generate_series(1, 500) AS n`.cursor(50, (rows) => { count += rows.length; });
assert.equal(count, 500);

const heard = [];
const first = new Promise((done) => sql.listen("js", (payload) => { heard.push(payload); if (heard.length === 3) done(); }).then(async () => {
  for (const word of ["a", "b", "c"]) await sql.notify("js", word);
}));
await first;
assert.deepEqual(heard, ["a", "b", "c"]);
await sql.end();
