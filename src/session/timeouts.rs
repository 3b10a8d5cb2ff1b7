//! How long a session may do what: a pure decision, taken some times a second.

use std::time::Duration;

use crate::protocol::TransactionStatus;

/// Of one database and user; zero is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Timeouts {
    /// A request is cancelled.
    pub query: Duration,
    /// A client that has a transaction open and asks for nothing is closed.
    pub idle_in_transaction: Duration,
    /// A client whose transaction lasts longer is closed.
    pub transaction: Duration,
    /// A client that asks for nothing, and has no transaction open, is closed.
    pub client_idle: Duration,
}

/// What a client with a backend has done for too long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Overdue {
    Query,
    IdleInTransaction,
    Transaction,
    Idle,
}

/// What a client with a backend is doing.
#[derive(Clone, Copy, Debug)]
pub struct Doing {
    /// As the last ReadyForQuery said.
    pub status: TransactionStatus,
    /// An answer is due.
    pub busy: bool,
    /// Since the request that is under way began; if none is, since the last one was answered.
    pub asked: Duration,
    /// Since the transaction began.
    pub begun: Duration,
}

impl Timeouts {
    /// Whether there is nothing to look at.
    pub fn are_none(&self) -> bool {
        *self == Timeouts::default()
    }

    /// What has lasted too long. What closes goes before what cancels.
    pub fn overdue(&self, doing: Doing) -> Option<Overdue> {
        let Doing { status, busy, asked, begun } = doing;
        let over = |limit: Duration, lasted: Duration| !limit.is_zero() && lasted >= limit;
        let open = status != TransactionStatus::Idle;
        if (busy || open) && over(self.transaction, begun) {
            return Some(Overdue::Transaction);
        }
        match (busy, open) {
            (true, _) => over(self.query, asked).then_some(Overdue::Query),
            (false, true) => over(self.idle_in_transaction, asked).then_some(Overdue::IdleInTransaction),
            (false, false) => over(self.client_idle, asked).then_some(Overdue::Idle),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_for_what_it_says() {
        let s = Duration::from_secs;
        let timeouts = Timeouts { query: s(1), idle_in_transaction: s(2), transaction: s(5), client_idle: s(3) };
        let (idle, open) = (TransactionStatus::Idle, TransactionStatus::InTransaction);
        let check = |status, busy, asked, begun, expected| {
            let doing = Doing { status, busy, asked: s(asked), begun: s(begun) };
            assert_eq!(timeouts.overdue(doing), expected, "{doing:?}");
            assert_eq!(Timeouts::default().overdue(doing), None);
        };
        check(idle, true, 0, 0, None);
        check(idle, true, 1, 1, Some(Overdue::Query));
        check(open, true, 1, 4, Some(Overdue::Query));
        check(open, true, 0, 5, Some(Overdue::Transaction));
        check(open, false, 1, 4, None);
        check(open, false, 2, 4, Some(Overdue::IdleInTransaction));
        check(open, false, 2, 5, Some(Overdue::Transaction));
        check(TransactionStatus::Failed, false, 2, 4, Some(Overdue::IdleInTransaction));
        check(idle, false, 2, 9, None);
        check(idle, false, 3, 9, Some(Overdue::Idle));
    }
}
