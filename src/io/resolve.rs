//! Host names are looked up on glommio's blocking pool, so that a slow name server does not hold up the shard.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{SocketAddr, ToSocketAddrs};
use std::rc::Rc;

use super::doorbell::Doorbell;

/// A ticket and what was found.
pub type Answer = (u64, Result<Vec<SocketAddr>, String>);

/// Answers that wait to be fetched by the shard; look-ups under way are bounded by the shard's dials.
#[derive(Clone)]
pub struct Resolver {
    answers: Rc<RefCell<VecDeque<Answer>>>,
    doorbell: Doorbell,
}

impl Resolver {
    /// Rings `doorbell` for each answer.
    pub fn new(doorbell: Doorbell) -> Self {
        Self { answers: Rc::default(), doorbell }
    }

    /// Starts a look-up. A literal address is answered at once.
    pub fn start(&self, host: &str, port: u16, ticket: u64) {
        if let Ok(address) = host.parse() {
            self.answers.borrow_mut().push_back((ticket, Ok(vec![SocketAddr::new(address, port)])));
            self.doorbell.ring();
            return;
        }
        let (this, host) = (self.clone(), host.to_owned());
        glommio::spawn_local(async move {
            let look_up = move || match (host.as_str(), port).to_socket_addrs() {
                Ok(addresses) => Ok(addresses.collect()),
                Err(error) => Err(error.to_string()),
            };
            let found = glommio::executor().spawn_blocking(look_up).await;
            this.answers.borrow_mut().push_back((ticket, found));
            this.doorbell.ring();
        })
        .detach();
    }

    /// The next answer.
    pub fn next(&self) -> Option<Answer> {
        self.answers.borrow_mut().pop_front()
    }
}
