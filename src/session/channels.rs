//! Who listens on what, where one backend listens for many clients: a table of channels for one database.
//!
//! The server listens on a channel while somebody here does; [`Channels::take_wanted`] and [`Channels::take_unwanted`]
//! say what is to be asked of it. Owned by the shard of that backend. Pure; count and bytes are bounded.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::rc::Rc;

use foldhash::fast::RandomState;

/// Channels and their listeners; `K` is what the caller calls a client.
pub struct Channels<K> {
    channels: HashMap<Rc<[u8]>, Channel<K>, RandomState>,
    clients: HashMap<K, Vec<Rc<[u8]>>, RandomState>,
    wanted: Vec<Rc<[u8]>>,
    unwanted: Vec<Rc<[u8]>>,
    bytes: usize,
    bytes_max: usize,
}

struct Channel<K> {
    listeners: HashSet<K, RandomState>,
    /// The server listens.
    heard: bool,
}

/// The table is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// What one client's listening on one channel takes, at most, in both tables.
const SUBSCRIPTION_SIZE: usize = 96;
/// A channel beside its name.
const CHANNEL_SIZE: usize = 192;

impl<K: Copy + Eq + Hash> Channels<K> {
    /// Room for `bytes_max` bytes in all.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            channels: HashMap::default(),
            clients: HashMap::default(),
            wanted: Vec::new(),
            unwanted: Vec::new(),
            bytes: 0,
            bytes_max,
        }
    }

    /// Bytes in use.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The client listens, too. The server must, before it hears anything.
    pub fn listen(&mut self, client: K, name: &[u8]) -> Result<(), Full> {
        let known = self.channels.contains_key(name);
        if known && self.hears(client, name) {
            return Ok(());
        }
        let size = SUBSCRIPTION_SIZE + if known { 0 } else { CHANNEL_SIZE + name.len() };
        if self.bytes + size > self.bytes_max {
            return Err(Full);
        }
        self.bytes += size;
        let name: Rc<[u8]> = match self.channels.get_key_value(name) {
            Some((name, _)) => name.clone(),
            None => name.into(),
        };
        let channel = self.channels.entry(name.clone()).or_insert_with(|| {
            self.wanted.push(name.clone());
            Channel { listeners: HashSet::default(), heard: false }
        });
        channel.listeners.insert(client);
        self.clients.entry(client).or_default().push(name);
        Ok(())
    }

    /// The client does not listen on it any more.
    pub fn unlisten(&mut self, client: K, name: &[u8]) {
        let Some(names) = self.clients.get_mut(&client) else { return };
        let Some(at) = names.iter().position(|known| **known == *name) else { return };
        let name = names.swap_remove(at);
        if names.is_empty() {
            self.clients.remove(&client);
        }
        self.drop_listener(client, name);
    }

    /// The client listens on nothing any more.
    pub fn leave(&mut self, client: K) {
        for name in self.clients.remove(&client).into_iter().flatten() {
            self.drop_listener(client, name);
        }
    }

    fn drop_listener(&mut self, client: K, name: Rc<[u8]>) {
        let channel = self.channels.get_mut(&name).expect("a channel that somebody listens on is there");
        channel.listeners.remove(&client);
        self.bytes -= SUBSCRIPTION_SIZE;
        if !channel.listeners.is_empty() {
            return;
        }
        self.channels.remove(&name);
        self.bytes -= CHANNEL_SIZE + name.len();
        match self.wanted.iter().position(|wanted| Rc::ptr_eq(wanted, &name)) {
            // The server has not been asked yet.
            Some(at) => drop(self.wanted.swap_remove(at)),
            None => self.unwanted.push(name),
        }
    }

    /// Whether the client listens on this.
    pub fn hears(&self, client: K, name: &[u8]) -> bool {
        self.channels.get(name).is_some_and(|channel| channel.listeners.contains(&client))
    }

    /// On how much the client listens.
    pub fn names_of(&self, client: K) -> impl Iterator<Item = &[u8]> {
        self.clients.get(&client).into_iter().flatten().map(|name| &**name)
    }

    /// Who listens on this.
    pub fn listeners(&self, name: &[u8]) -> impl Iterator<Item = K> {
        self.channels.get(name).into_iter().flat_map(|channel| channel.listeners.iter().copied())
    }

    /// Everybody who listens on anything.
    pub fn clients(&self) -> impl Iterator<Item = K> {
        self.clients.keys().copied()
    }

    /// Whether nobody listens on anything.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Whether the server listens on this, and has said so.
    pub fn is_heard(&self, name: &[u8]) -> bool {
        self.channels.get(name).is_some_and(|channel| channel.heard)
    }

    /// The server listens on this, which [`Self::take_wanted`] gave. Where nobody did any more meanwhile, and somebody does
    /// again, it is another channel of the same name: the server will be asked to forget the one and to hear the other.
    pub fn heard(&mut self, name: &Rc<[u8]>) {
        let same = |(known, _): (&Rc<[u8]>, &Channel<K>)| Rc::ptr_eq(known, name);
        if self.channels.get_key_value(&**name).is_some_and(same)
            && let Some(channel) = self.channels.get_mut(name)
        {
            channel.heard = true;
        }
    }

    /// Whether the server has to be asked to listen on more or less.
    pub fn has_wishes(&self) -> bool {
        !self.wanted.is_empty() || !self.unwanted.is_empty()
    }

    /// A channel that the server need not listen on any more. Those before [`Self::take_wanted`]: one that is wanted
    /// again is in both.
    pub fn take_unwanted(&mut self) -> Option<Rc<[u8]>> {
        self.unwanted.pop()
    }

    /// A channel that the server is to listen on.
    pub fn take_wanted(&mut self) -> Option<Rc<[u8]>> {
        self.wanted.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_server_listens_while_somebody_does() {
        let mut channels = Channels::new(10_000);
        channels.listen(1, b"a").unwrap();
        channels.listen(2, b"a").unwrap();
        channels.listen(2, b"a").unwrap();
        let asked = channels.take_wanted().unwrap();
        assert_eq!(*asked, b"a"[..]);
        assert!(!channels.has_wishes() && !channels.is_heard(b"a"));
        channels.heard(&asked);
        channels.unlisten(1, b"a");
        assert!(channels.is_heard(b"a") && channels.listeners(b"a").eq([2]));
        channels.leave(2);
        assert!(channels.is_empty() && channels.bytes() == 0 && !channels.is_heard(b"a"));
        channels.listen(3, b"a").unwrap();
        assert_eq!(channels.take_unwanted().as_deref(), Some(&b"a"[..]));
        assert_eq!(channels.take_wanted().as_deref(), Some(&b"a"[..]));
    }

    #[test]
    fn a_full_table_takes_no_more() {
        let mut channels = Channels::new(CHANNEL_SIZE + SUBSCRIPTION_SIZE + 1);
        channels.listen(1, b"a").unwrap();
        assert_eq!(channels.listen(2, b"a"), Err(Full));
        assert_eq!(channels.listen(1, b"b"), Err(Full));
        assert!(!channels.hears(2, b"a"));
        channels.leave(1);
        channels.listen(2, b"b").unwrap();
    }

    proptest! {
        /// Whatever happens, both tables agree, and what was asked of the server is what somebody listens on.
        #[test]
        fn both_tables_agree(acts: Vec<(u8, u8, u8)>) {
            let mut channels = Channels::new(usize::MAX);
            let mut truth = HashSet::new();
            let mut server = HashSet::new();
            // The server is asked of several at once, and answers later.
            let mut asked: Vec<Rc<[u8]>> = Vec::new();
            let acts = acts.into_iter().chain([(128 + 2, 0, 0), (128 + 64 + 2, 0, 0)]);
            for (act, client, name) in acts {
                let (client, name) = (client % 4, [name % 4]);
                match act % 4 {
                    0 | 1 => {
                        channels.listen(client, &name).unwrap();
                        truth.insert((client, name));
                    }
                    2 => {
                        channels.unlisten(client, &name);
                        truth.remove(&(client, name));
                    }
                    _ => {
                        channels.leave(client);
                        truth.retain(|(other, _)| *other != client);
                    }
                }
                if act >= 128 {
                    asked.drain(..).for_each(|name| channels.heard(&name));
                }
                if act >= 128 + 64 {
                    while let Some(name) = channels.take_unwanted() {
                        server.remove(&*name);
                    }
                    while let Some(name) = channels.take_wanted() {
                        server.insert(name.to_vec());
                        asked.push(name);
                    }
                    let wanted: HashSet<Vec<u8>> = truth.iter().map(|(_, name)| name.to_vec()).collect();
                    prop_assert_eq!(&server, &wanted);
                }
                let names = (0..4u8).filter(|&name| channels.is_heard(&[name]));
                for name in names {
                    prop_assert!(server.contains(&vec![name]));
                }
                prop_assert!(channels.wanted.len() <= 4 && channels.unwanted.len() <= 8);
                for &(client, name) in &truth {
                    prop_assert!(channels.hears(client, &name));
                    prop_assert!(channels.names_of(client).any(|known| *known == name));
                }
                let count = (0..4).map(|client| channels.names_of(client).count()).sum::<usize>();
                prop_assert_eq!(count, truth.len());
            }
        }
    }
}
