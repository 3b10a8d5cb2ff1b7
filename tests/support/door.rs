//! A door before a server: lets connections through, or says what a server in trouble would; counts who knocks, and how
//! often those inside have asked something and been answered.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::Address;
use super::raw::message;

/// What it does with who knocks.
#[derive(Clone, Debug)]
pub enum Manner {
    Open,
    /// SQLSTATE and text of a FATAL error, said this long after the startup packet.
    Refuse(&'static str, &'static str, Duration),
}

pub struct Door {
    port: u16,
    state: Arc<Mutex<State>>,
}

struct State {
    manner: Manner,
    /// When each connection came.
    knocks: Vec<Instant>,
    /// Refusals under way.
    inside: usize,
    inside_most: usize,
    /// Round trips.
    turns: usize,
    /// How long each piece of an answer is kept back.
    delay: Duration,
    /// Pieces of questions with this in them are kept back.
    held: Option<&'static str>,
}

impl Door {
    /// Opens one before `server`. Its threads end with the process.
    pub fn before(server: Address, manner: Manner) -> Door {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is left");
        let port = listener.local_addr().expect("it is bound").port();
        let state = State {
            manner,
            knocks: Vec::new(),
            inside: 0,
            inside_most: 0,
            turns: 0,
            delay: Duration::ZERO,
            held: None,
        };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for knocking in listener.incoming().flatten() {
                let (shared, server) = (Arc::clone(&shared), server.clone());
                std::thread::spawn(move || answer(knocking, &server, shared));
            }
        });
        Door { port, state }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn set(&self, manner: Manner) {
        self.state.lock().expect("nobody panics with it").manner = manner;
    }

    /// From now on each piece of an answer comes this much later.
    pub fn set_delay(&self, delay: Duration) {
        self.state.lock().expect("nobody panics with it").delay = delay;
    }

    /// From now on who asks something with this in it waits for [`Self::let_ask`].
    pub fn hold_questions(&self, with: &'static str) {
        self.state.lock().expect("nobody panics with it").held = Some(with);
    }

    /// What was kept back is asked.
    pub fn let_ask(&self) {
        self.state.lock().expect("nobody panics with it").held = None;
    }

    /// When each connection came since the last question.
    pub fn take_knocks(&self) -> Vec<Instant> {
        std::mem::take(&mut self.state.lock().expect("nobody panics with it").knocks)
    }

    /// How often the server was asked something and answered.
    pub fn turns(&self) -> usize {
        self.state.lock().expect("nobody panics with it").turns
    }

    /// Most that waited for their refusal at a time.
    pub fn inside_most(&self) -> usize {
        self.state.lock().expect("nobody panics with it").inside_most
    }
}

fn answer(mut knocking: TcpStream, server: &Address, state: Arc<Mutex<State>>) {
    let manner = {
        let mut state = state.lock().expect("nobody panics with it");
        state.knocks.push(Instant::now());
        state.manner.clone()
    };
    match manner {
        Manner::Open => {
            let Ok(through) = TcpStream::connect((server.host.as_str(), server.port)) else { return };
            let (Ok(back), Ok(forth)) = (knocking.try_clone(), through.try_clone()) else { return };
            let answered = Arc::new(AtomicBool::new(true));
            let (says, slows) = (Arc::clone(&answered), Arc::clone(&state));
            let back_late = move |_: &[u8]| {
                says.store(true, Ordering::SeqCst);
                let delay = slows.lock().expect("nobody panics with it").delay;
                std::thread::sleep(delay);
            };
            std::thread::spawn(move || pass(through, back, back_late));
            // What is asked behind an answer is one more round trip; its second piece is not.
            pass(knocking, forth, |question| {
                let is_in = |text: &str| question.windows(text.len()).any(|part| part == text.as_bytes());
                while state.lock().expect("nobody panics with it").held.is_some_and(is_in) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                if answered.swap(false, Ordering::SeqCst) {
                    state.lock().expect("nobody panics with it").turns += 1;
                }
            });
        }
        Manner::Refuse(code, text, delay) => {
            {
                let mut state = state.lock().expect("nobody panics with it");
                state.inside += 1;
                state.inside_most = state.inside_most.max(state.inside);
            }
            let mut packet = [0; 4096];
            let _ = knocking.read(&mut packet);
            std::thread::sleep(delay);
            let body = format!("SFATAL\0VFATAL\0C{code}\0M{text}\0\0");
            let _ = knocking.write_all(&message(b'E', body.as_bytes()));
            let _ = knocking.shutdown(Shutdown::Write);
            state.lock().expect("nobody panics with it").inside -= 1;
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, mut comes: impl FnMut(&[u8])) {
    let mut room = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut room) {
        comes(&room[..length]);
        if to.write_all(&room[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
