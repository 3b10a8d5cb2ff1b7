// node-postgres: its pool, named statements, LISTEN, tenants by SET and by row security.
import assert from "node:assert";
import pg from "pg";

const connectionString = process.env.DSN;
const pool = new pg.Pool({ connectionString, max: 8 });

async function tenant(number) {
  const client = await pool.connect();
  try {
    await client.query(`SET search_path TO tenant_${number}; SET app.tenant = ${number}`);
    for (let round = 0; round < 20; round++) {
      const rows = (await client.query({ name: "items", text: "SELECT tenant FROM items WHERE id = $1", values: [1] })).rows;
      assert.deepEqual(rows, [{ tenant: number }]);
    }
    await client.query("SET ROLE application");
    assert.equal((await client.query("SELECT DISTINCT tenant FROM public.docs")).rows[0].tenant, number);
    await client.query("RESET ROLE");
    await client.query("BEGIN");
    await assert.rejects(client.query("SELECT 1/0"), { code: "22012" });
    await assert.rejects(client.query("SELECT 1"), { code: "25P02" });
    await client.query("ROLLBACK");
    assert.equal((await client.query("SHOW search_path")).rows[0].search_path, `tenant_${number}`);
  } finally {
    client.release();
  }
}
await Promise.all(Array.from({ length: 10 }, (_, number) => tenant(number)));

const ear = new pg.Client({ connectionString });
await ear.connect();
const heard = new Promise((done) => ear.on("notification", done));
await ear.query("LISTEN node");
await pool.query("SELECT pg_notify('node', 'hello')");
assert.equal((await heard).payload, "hello");
await ear.end();
await pool.end();
