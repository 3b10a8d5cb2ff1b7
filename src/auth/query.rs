//! `auth.query`: the statement that asks a server for a user's secret, and what its answer means.

use super::secrets::{SECRET_SIZE_MAX, Secret};

/// What PgBouncer asks, and for the same reason: an expired password is none.
pub const QUERY_DEFAULT: &str = "SELECT rolname, CASE WHEN rolvaliduntil < pg_catalog.now() THEN NULL ELSE rolpassword \
                                 END FROM pg_catalog.pg_authid WHERE rolname = $1 AND rolcanlogin";

/// A query with the one place where the user's name stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Query {
    before: String,
    after: String,
    /// Who asks.
    pub user: String,
    /// Where. `None`: in the database that the client wants.
    pub database: Option<String>,
}

impl Query {
    /// `text` has `$1` exactly once. `None`: it has not, or something else that cannot be.
    pub fn new(text: &str, user: &str, database: Option<&str>) -> Option<Query> {
        let (before, after) = text.split_once("$1")?;
        let is_other =
            after.starts_with(|next: char| next.is_ascii_digit()) || after.contains('$') || before.contains('$');
        if is_other || text.contains('\0') {
            return None;
        }
        let (user, database) = (user.to_owned(), database.map(str::to_owned));
        Some(Query { before: before.to_owned(), after: after.to_owned(), user, database })
    }

    /// The statements for a user. What the session's search_path is does not matter: it is set for this transaction, or
    /// somebody who may create functions could have them called here (CVE-2025-12819).
    pub fn sql(&self, user: &str) -> Vec<u8> {
        let Query { before, after, .. } = self;
        let after = after.trim_end().trim_end_matches(';');
        format!("SET LOCAL search_path = pg_catalog; {before}{}{after}", literal(user)).into_bytes()
    }
}

/// Roles of one user that are taken note of.
const ROLES_MAX: usize = 512;

/// The statements for the roles that a user is a member of, itself among them, directly or by others. A superuser is a
/// member of what it is a member of, and of nothing else, as in PostgreSQL's own rules. Everybody may ask that.
pub fn roles_sql(user: &str) -> Vec<u8> {
    format!(
        "SET LOCAL search_path = pg_catalog; WITH RECURSIVE known (oid) AS (SELECT oid FROM pg_catalog.pg_roles WHERE \
         rolname = {} UNION SELECT given.roleid FROM pg_catalog.pg_auth_members given JOIN known ON given.member = \
         known.oid) SELECT roles.rolname FROM known JOIN pg_catalog.pg_roles roles USING (oid) LIMIT {}",
        literal(user),
        ROLES_MAX + 1
    )
    .into_bytes()
}

/// What came of [`roles_sql`].
#[derive(Debug, Default)]
pub struct Roles {
    /// So far.
    pub names: Vec<String>,
}

impl Roles {
    /// A row: one name.
    pub fn row<'a>(&mut self, mut values: impl Iterator<Item = Option<&'a [u8]>>) -> Result<(), Useless> {
        let (Some(Some(name)), None) = (values.next(), values.next()) else { return Err(Useless::Columns) };
        if self.names.len() >= ROLES_MAX {
            return Err(Useless::Rows);
        }
        self.names.push(std::str::from_utf8(name).map_err(|_| Useless::Columns)?.to_owned());
        Ok(())
    }
}

/// A string constant, whatever standard_conforming_strings says.
fn literal(text: &str) -> String {
    format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Answer {
    /// The user's secret. `None`: there is no such user, or it has none.
    pub secret: Option<Secret>,
    /// Rows so far.
    pub rows: usize,
}

/// Why an answer is of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Useless {
    /// There must be two columns, name and secret, and the name that was asked for; of roles, the name alone.
    Columns,
    /// More than one row; of roles, too many.
    Rows,
    /// A secret that is too long or not text.
    Secret,
}

impl Answer {
    /// A row: the user's name and its secret.
    pub fn row<'a>(&mut self, user: &str, mut values: impl Iterator<Item = Option<&'a [u8]>>) -> Result<(), Useless> {
        let (Some(name), Some(secret), None) = (values.next(), values.next(), values.next()) else {
            return Err(Useless::Columns);
        };
        // A function that returns a record instead of a set of them has a row for nobody, too.
        let is_nobody = name.is_none() && secret.is_none();
        if name != Some(user.as_bytes()) && !is_nobody {
            return Err(Useless::Columns);
        }
        self.rows += 1;
        if self.rows > 1 {
            return Err(Useless::Rows);
        }
        let Some(secret) = secret.filter(|secret| !secret.is_empty()) else { return Ok(()) };
        let text = std::str::from_utf8(secret).ok().filter(|text| text.len() <= SECRET_SIZE_MAX);
        self.secret = Some(Secret::from_text(text.ok_or(Useless::Secret)?));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_a_constant_whatever_it_is() {
        let query = Query::new("SELECT a, b FROM f($1);", "asker", None).expect("one place");
        let check = |user: &str, expected: &str| {
            let sql = String::from_utf8(query.sql(user)).expect("text");
            assert_eq!(sql, format!("SET LOCAL search_path = pg_catalog; SELECT a, b FROM f( E'{expected}')"));
        };
        check("alice", "alice");
        check("o'brien", "o''brien");
        check("\\'; DROP TABLE x; --", "\\\\''; DROP TABLE x; --");
        for wrong in ["SELECT 1", "SELECT $1, $1", "SELECT $10", "SELECT $2", "SELECT $$a$$, $1", "SELECT $1\0"] {
            assert_eq!(Query::new(wrong, "asker", None), None, "{wrong}");
        }
        assert!(Query::new(QUERY_DEFAULT, "asker", None).is_some());
    }

    #[test]
    fn roles_are_names_and_not_too_many() {
        let mut roles = Roles::default();
        assert_eq!(roles.row([Some(&b"staff"[..])].into_iter()), Ok(()));
        assert_eq!(roles.row([Some(&b"a"[..]), Some(b"b")].into_iter()), Err(Useless::Columns));
        assert_eq!(roles.row([None].into_iter()), Err(Useless::Columns));
        assert_eq!(roles.row([Some(&b"\xff"[..])].into_iter()), Err(Useless::Columns));
        for _ in 1..ROLES_MAX {
            assert_eq!(roles.row([Some(&b"staff"[..])].into_iter()), Ok(()));
        }
        assert_eq!(roles.row([Some(&b"staff"[..])].into_iter()), Err(Useless::Rows));
        let sql = String::from_utf8(roles_sql("o'brien\\")).expect("text");
        assert!(sql.contains("rolname =  E'o''brien\\\\'"), "{sql}");
    }

    #[test]
    fn rows_are_what_was_asked_for() {
        let row = |values: &[Option<&'static [u8]>]| {
            let mut answer = Answer::default();
            answer.row("alice", values.iter().copied()).map(|()| answer.secret.is_some())
        };
        assert_eq!(row(&[Some(b"alice"), Some(b"md5c4ca4238a0b923820dcc509a6f75849b")]), Ok(true));
        assert_eq!(row(&[Some(b"alice"), None]), Ok(false));
        assert_eq!(row(&[Some(b"alice"), Some(b"")]), Ok(false));
        assert_eq!(row(&[Some(b"bob"), Some(b"x")]), Err(Useless::Columns));
        assert_eq!(row(&[None, None]), Ok(false));
        assert_eq!(row(&[None, Some(b"x")]), Err(Useless::Columns));
        assert_eq!(row(&[Some(b"alice")]), Err(Useless::Columns));
        assert_eq!(row(&[Some(b"alice"), Some(b"x"), Some(b"y")]), Err(Useless::Columns));
        assert_eq!(row(&[Some(b"alice"), Some(&[b'x'; 3000])]), Err(Useless::Secret));
        assert_eq!(row(&[Some(b"alice"), Some(b"\xff")]), Err(Useless::Secret));
        let mut answer = Answer::default();
        assert_eq!(answer.row("alice", [Some(&b"alice"[..]), None].into_iter()), Ok(()));
        assert_eq!(answer.row("alice", [Some(&b"alice"[..]), None].into_iter()), Err(Useless::Rows));
    }
}
