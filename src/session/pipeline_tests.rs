use super::*;
use proptest::prelude::*;

/// Plays a conversation: upper case tags go to the server, lower-case words come from it.
fn play(steps: &str) -> (Pipeline, Vec<Result<Reply, Broken>>) {
    let mut pipeline = Pipeline::new();
    let mut replies = Vec::new();
    for step in steps.split_whitespace() {
        if let Some(tag) = step.strip_prefix('>') {
            pipeline.on_frontend(tag.as_bytes()[0], 0).unwrap();
            continue;
        }
        let (tag, status) = match step {
            "ZI" => (backend::READY_FOR_QUERY, Some(TransactionStatus::Idle)),
            "ZT" => (backend::READY_FOR_QUERY, Some(TransactionStatus::InTransaction)),
            "ZE" => (backend::READY_FOR_QUERY, Some(TransactionStatus::Failed)),
            tag => (tag.as_bytes()[0], None),
        };
        replies.push(pipeline.on_backend(tag, status));
        while pipeline.take_skipped().is_some() {}
        while pipeline.next_virtual().is_some() {}
    }
    (pipeline, replies)
}

fn whole(steps: &str) -> bool {
    let (pipeline, replies) = play(steps);
    assert!(replies.iter().all(Result::is_ok), "{steps}: {replies:?}");
    pipeline.is_whole()
}

/// What goes to the server, what comes back, and whether the backend may go back to its pool then.
const TABLE: &[(&str, bool)] = &[
    ("", true),
    (">Q", false),
    (">Q T D C", false),
    (">Q T D C ZI", true),
    (">Q C ZT", false),
    (">Q E ZE", false),
    (">Q E ZI", true),
    (">Q I ZI", true),
    (">Q T D C T D C ZI", true),
    (">Q >Q C ZI", false),
    (">Q >Q C ZI C ZI", true),
    // Extended.
    (">P >B >D >E >S 1 2 T D C ZI", true),
    (">P >B >D >E >S 1 2 T D C", false),
    (">P >D >S 1 t n ZI", true),
    (">P", false),
    (">P >H 1", false),
    (">P >Q 1 C ZI", true),
    (">P >Q >B 1 C ZI 2", false),
    (">P >S 1 ZI >B", false),
    (">B >E >S 2 s ZT", false),
    (">B >E >S 2 D s ZI", true),
    (">C >S 3 ZI", true),
    (">S ZI", true),
    (">S >S ZI", false),
    // An error cuts off what follows up to the Sync.
    (">P >B >E >S E ZI", true),
    (">P >B >E >S 1 E ZI", true),
    (">P >B E", false),
    (">P >B E >E >S", false),
    (">P >B E >E >S ZI", true),
    (">P >S >P >S E ZI 1", false),
    (">P >S >P >S E ZI 1 ZI", true),
    // "even a simple Query" is discarded up to the Sync.
    (">P >Q >S E ZI", true),
    // COPY.
    (">Q G", false),
    (">Q G >d >c C ZI", true),
    (">Q G >d >f E ZI", true),
    (">Q G >d E ZI", true),
    (">Q H d d c C ZI", true),
    (">B >E >S 2 G >d >c >S C ZI", true),
    (">P >B >D >E >S 1 2 n G >d >c >S C ZI", true),
    (">B >E >S 2 G >d >c C", false),
    (">B >E 2 G >d E >c >S ZI", true),
    (">B >E >d >c >S 2 G C ZI", true),
    (">B >E >S 2 G >S >d >c >S C ZI", true),
    (">Q >c C ZI", true),
    (">Q G >d >Q E ZI", false),
    // Did the server read the Sync before the copy failed, or after?
    (">B >E >S 2 G E ZI", false),
    (">B >E >S 2 G >d E >c >S ZI", false),
    (">Q G >d >S E ZI", false),
    // Function call.
    (">F V ZI", true),
    (">F E ZI", true),
    // Asynchronous messages answer nothing.
    (">Q N S A C ZI", true),
];

#[test]
fn the_table() {
    for &(steps, expected) in TABLE {
        assert_eq!(whole(steps), expected, "{steps}");
    }
}

#[test]
fn what_was_not_asked_is_refused() {
    for steps in ["ZI", "C", ">Q C ZI ZI", ">P 2", ">B >S 2 ZI 1", ">P 1 ZI", ">S 2", ">Q 1"] {
        let (_, replies) = play(steps);
        assert!(replies.last().unwrap().is_err(), "{steps}");
    }
}

#[test]
fn own_and_virtual_replies_keep_their_place() {
    let mut pipeline = Pipeline::new();
    pipeline.ask(Expect::OwnParse, 7).unwrap();
    pipeline.on_frontend(frontend::BIND, 0).unwrap();
    pipeline.ask(Expect::VirtualParse, 8).unwrap();
    pipeline.on_frontend(frontend::SYNC, 0).unwrap();
    assert_eq!(pipeline.next_virtual(), None);
    let reply = pipeline.on_backend(backend::PARSE_COMPLETE, None).unwrap();
    assert_eq!(reply, Reply::Answered(Entry { expect: Expect::OwnParse, mark: 7 }));
    assert_eq!(pipeline.next_virtual(), None);
    pipeline.on_backend(backend::BIND_COMPLETE, None).unwrap();
    assert_eq!(pipeline.next_virtual(), Some(Entry { expect: Expect::VirtualParse, mark: 8 }));
    assert!(!pipeline.is_whole());
    pipeline.on_backend(backend::READY_FOR_QUERY, Some(TransactionStatus::Idle)).unwrap();
    assert!(pipeline.is_whole());
}

#[test]
fn an_error_takes_virtual_replies_with_it() {
    let mut pipeline = Pipeline::new();
    pipeline.on_frontend(frontend::PARSE, 1).unwrap();
    pipeline.ask(Expect::VirtualParse, 2).unwrap();
    pipeline.on_frontend(frontend::SYNC, 0).unwrap();
    let reply = pipeline.on_backend(backend::ERROR_RESPONSE, None).unwrap();
    assert_eq!(reply, Reply::Failed(Entry { expect: Expect::Parse, mark: 1 }));
    assert_eq!(pipeline.take_skipped(), Some(Entry { expect: Expect::VirtualParse, mark: 2 }));
    assert_eq!(pipeline.take_skipped(), None);
    assert_eq!(pipeline.next_virtual(), None);
    pipeline.on_backend(backend::READY_FOR_QUERY, Some(TransactionStatus::Idle)).unwrap();
    assert!(pipeline.is_whole());
}

#[test]
fn own_queries_are_not_for_the_client() {
    let mut pipeline = Pipeline::new();
    pipeline.ask(Expect::OwnQuery, 0).unwrap();
    pipeline.on_frontend(frontend::QUERY, 0).unwrap();
    assert_eq!(pipeline.on_backend(backend::COMMAND_COMPLETE, None), Ok(Reply::Swallow));
    assert_eq!(pipeline.on_backend(backend::PARAMETER_STATUS, None), Ok(Reply::Forward));
    let ready = pipeline.on_backend(backend::READY_FOR_QUERY, Some(TransactionStatus::Idle)).unwrap();
    assert_eq!(ready, Reply::Answered(Entry { expect: Expect::OwnQuery, mark: 0 }));
    assert!(!pipeline.is_whole());
    assert_eq!(pipeline.on_backend(backend::COMMAND_COMPLETE, None), Ok(Reply::Forward));
}

#[test]
fn a_full_pipeline_says_so() {
    let mut pipeline = Pipeline::new();
    for _ in 0..CAPACITY {
        pipeline.on_frontend(frontend::BIND, 0).unwrap();
    }
    assert!(!pipeline.has_room(1));
    assert_eq!(pipeline.on_frontend(frontend::BIND, 0), Err(Full));
}

/// A server that obeys the manual, as plainly as it can be written: it answers each message at once.
#[derive(Default)]
struct Server {
    skipping: bool,
    copying: Option<bool>,
    failed: bool,
}

impl Server {
    /// Tags (and statuses) that it answers with. `fails`: this message is in error; `copies`: this one begins a COPY.
    fn answer(&mut self, tag: u8, fails: bool, copies: bool) -> Vec<&'static str> {
        if let Some(extended) = self.copying {
            return match tag {
                frontend::COPY_DONE => {
                    self.copying = None;
                    if extended { vec!["C"] } else { vec!["C", "ZI"] }
                }
                frontend::COPY_DATA if fails => {
                    self.copying = None;
                    self.skipping = extended;
                    if extended { vec!["E"] } else { vec!["E", "ZI"] }
                }
                _ => vec![],
            };
        }
        if self.skipping && tag != frontend::SYNC {
            return vec![];
        }
        self.failed = fails;
        match tag {
            frontend::SYNC => {
                self.skipping = false;
                vec!["ZI"]
            }
            frontend::QUERY if copies => {
                self.copying = Some(false);
                vec!["G"]
            }
            frontend::QUERY if fails => vec!["E", "ZI"],
            frontend::QUERY => vec!["T", "D", "C", "ZI"],
            frontend::COPY_DATA | frontend::COPY_DONE | frontend::FLUSH => vec![],
            _ if fails => {
                self.skipping = true;
                vec!["E"]
            }
            frontend::PARSE => vec!["1"],
            frontend::BIND => vec!["2"],
            frontend::EXECUTE if copies => {
                self.copying = Some(true);
                vec!["G"]
            }
            frontend::EXECUTE => vec!["D", "C"],
            _ => vec!["n"],
        }
    }
}

proptest! {
    /// However requests and answers interleave, the backend is whole exactly when the server has read everything,
    /// answered everything and waits for no Sync; or QCP doubts, and then it never is.
    #[test]
    fn whole_means_whole(
        steps in proptest::collection::vec((0usize..7, any::<bool>(), any::<bool>(), 0usize..4), 1..60),
    ) {
        let mut pipeline = Pipeline::new();
        let mut server = Server::default();
        let mut sent = std::collections::VecDeque::new();
        let mut answers = std::collections::VecDeque::new();
        let mut unsynced = false;
        let drain = |pipeline: &mut Pipeline, answers: &mut std::collections::VecDeque<&'static str>, count: usize| {
            for _ in 0..count {
                let Some(answer) = answers.pop_front() else { break };
                let status = (answer == "ZI").then_some(TransactionStatus::Idle);
                if pipeline.on_backend(answer.as_bytes()[0], status).is_err() {
                    // Only where the copy's Syncs could not be told apart may the counting fail, and it says so.
                    assert!(pipeline.is_uncertain(), "an answer was not expected, and nothing was doubted");
                    return false;
                }
                while pipeline.take_skipped().is_some() {}
                while pipeline.next_virtual().is_some() {}
            }
            true
        };
        for (which, fails, copies, read) in steps {
            let tag = b"QPBESdc"[which];
            pipeline.on_frontend(tag, 0).unwrap();
            sent.push_back((tag, fails && copies, copies && !fails));
            for _ in 0..read {
                let Some((tag, fails, copies)) = sent.pop_front() else { break };
                let (was_copying, was_skipping) = (server.copying.is_some(), server.skipping);
                answers.extend(server.answer(tag, fails, copies));
                match tag {
                    frontend::SYNC if !was_copying => unsynced = false,
                    frontend::QUERY if !was_copying && !was_skipping => unsynced = false,
                    frontend::PARSE | frontend::BIND | frontend::EXECUTE => unsynced = true,
                    _ => {}
                }
            }
            if !drain(&mut pipeline, &mut answers, read) {
                return Ok(());
            }
            // CopyData and CopyDone that no COPY waits for are read and ignored: they cannot reach the next client's.
            let read = sent.iter().all(|&(tag, ..)| matches!(tag, frontend::COPY_DATA | frontend::COPY_DONE));
            let clean = read && answers.is_empty() && server.copying.is_none() && !server.skipping;
            if pipeline.is_whole() {
                prop_assert!(clean && !unsynced, "released too early");
            }
        }
    }
}
