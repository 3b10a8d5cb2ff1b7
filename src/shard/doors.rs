//! Where clients come in, as that changes while qcp runs: an address more, an address less, and the day when another process
//! takes over and the clients that are left here are served until they go.

use std::sync::mpsc::{Sender, SyncSender};
use std::time::{Duration, Instant};

use crate::ids::{ClientId, DoorId};
use crate::io::Transport;
use crate::session::fault::Fault;

use super::mailbox::Listener;
use super::{ClientState, Running, Shard};

/// Who does nothing for so long will hardly do so in the moment in which it is sent off.
const IDLE_MIN: Duration = Duration::from_secs(1);

/// A cancel request of nobody here: the process id and the key, as the client sent them.
pub type Stray = (u32, Vec<u8>);

#[derive(Default)]
pub(super) struct Doors {
    /// Those that are being closed, and who waits for it.
    closing: Vec<(DoorId, Sender<()>)>,
    /// Another process takes the clients that come from now on; when those between two transactions go, too.
    seen_off: Option<Instant>,
    /// Who passes cancel requests on to the processes that this one has taken over from.
    strays: Option<SyncSender<Stray>>,
}

impl<T: Transport> Shard<T> {
    /// Whom cancel requests are handed that are meant for nobody here.
    pub fn set_strays(&mut self, strays: SyncSender<Stray>) {
        self.doors.strays = Some(strays);
    }

    pub(super) fn open_doors(&mut self, listeners: Vec<Listener>) {
        if self.running != Running::Yes {
            return;
        }
        for Listener { socket, local, door } in listeners {
            self.io.listen(socket, local, door);
        }
    }

    pub(super) fn close_doors(&mut self, doors: Vec<DoorId>, done: Sender<()>) {
        for door in doors {
            self.io.close_door(door);
            self.doors.closing.push((door, done.clone()));
        }
        self.note_closed_doors();
    }

    /// At a tick: those by which nobody can come any more are told of.
    pub(super) fn note_closed_doors(&mut self) {
        let io = &self.io;
        self.doors.closing.retain(|&(door, _)| io.is_open(door));
    }

    pub(super) fn see_off(&mut self, within: Duration) {
        self.doors.seen_off = Some(self.io.now() + within);
    }

    /// Where another process has taken over: clients that do nothing are sent off, to come to the other; after a while also
    /// those that keep a backend between two transactions, or that never pause.
    pub(super) fn send_off_idle(&mut self) {
        let Some(until) = self.doors.seen_off.filter(|_| self.running == Running::Yes) else { return };
        let (now, late) = (self.stamp(self.io.now()), self.io.now() >= until);
        let mut from = 0;
        while let Some((index, generation)) = self.clients.next_used(from) {
            from = index + 1;
            let id = ClientId { index, generation };
            let client = self.clients.get(index, generation).expect("just found");
            let goes = match client.state {
                ClientState::Startup | ClientState::Moving(_) | ClientState::Login(_) | ClientState::Waiting(_) => {
                    false
                }
                ClientState::Ready => late || client.active.age(now) >= IDLE_MIN,
                ClientState::Linked(backend) => {
                    let link = self.backends.get(backend.index, backend.generation);
                    late && link.is_none_or(|link| link.pipeline.is_whole())
                }
                // What it is in the middle of is not known.
                ClientState::Piped(_) | ClientState::Console(_) => late,
            };
            if goes {
                self.fail(id, &Fault::ShuttingDown);
            }
        }
    }

    pub(super) fn cancel_elsewhere(&self, process_id: u32, key: &[u8]) {
        if let Some(strays) = &self.doors.strays {
            // Where too many come at once some are dropped: a cancel is a wish, and they may all be somebody's guesses.
            let _ = strays.try_send((process_id, key.to_vec()));
        }
    }
}
