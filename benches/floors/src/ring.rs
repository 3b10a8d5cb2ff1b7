//! One io_uring with its receive buffers: registered sockets, multishot accept and receive, sends by entry.
//!
//! Invariant: a buffer belongs to the ring until a completion names it, and then to the caller until `give`. The memory is never unmapped, so an operation in flight cannot outlive it.

use crate::dial;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};

/// Sockets that may be open at once, if the process may have as many files.
const SOCKETS_MAX: u64 = 16_384;
const ADOPTED_MAX: u32 = 1_024;
const SUBMISSIONS: u32 = 4_096;
const COMPLETIONS: u32 = 32_768;
/// Buffers start 1 KiB apart modulo a page, so that their first lines do not compete for the same cache sets.
const BUFFER_COLOUR: usize = 1_024;
const BUFFER_GROUP: u16 = 0;
const LENT_MIN: usize = 8;
/// The target shrinks by this fraction of itself in each turn.
const LENT_FADE: usize = 32;
const NO_BUFFER: u16 = u16::MAX;

/// What a completion was for. The ring carries it; `slot` and `kind` mean what the program wants.
#[derive(Clone, Copy)]
pub struct Token {
    pub kind: u8,
    pub buffer: u16,
    pub slot: u32,
}

impl Token {
    pub const fn new(kind: u8, slot: u32) -> Token {
        Token { kind, buffer: NO_BUFFER, slot }
    }

    fn pack(self) -> u64 {
        u64::from(self.kind) << 56 | u64::from(self.buffer) << 32 | u64::from(self.slot)
    }

    fn unpack(bits: u64) -> Token {
        Token { kind: (bits >> 56) as u8, buffer: (bits >> 32) as u16, slot: bits as u32 }
    }
}

#[derive(Clone, Copy)]
pub struct Completion {
    pub token: Token,
    pub result: i32,
    flags: u32,
}

impl Completion {
    /// A multishot operation stays armed.
    pub fn more(&self) -> bool {
        cqueue::more(self.flags)
    }
}

/// What a receive brought.
pub enum Received {
    Bytes(BufferId),
    /// No buffer was left; the receive has to be armed again.
    Starved,
    /// `cancel_receive` took effect.
    Cancelled,
    End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BufferId(u16);

/// A registered socket.
#[derive(Clone, Copy)]
pub struct Socket(u32);

impl Socket {
    /// The socket that an accept or `open` completed with.
    pub fn from_completion(completion: &Completion) -> Socket {
        assert!(completion.result >= 0, "no socket: {}", error(completion.result));
        Socket(completion.result as u32)
    }
}

/// Received buffers in the order in which they are to be sent.
#[derive(Clone, Copy)]
pub struct Chain {
    head: u16,
    tail: u16,
    count: u16,
}

impl Chain {
    pub fn count(&self) -> usize {
        usize::from(self.count)
    }
}

impl Default for Chain {
    fn default() -> Chain {
        Chain { head: NO_BUFFER, tail: NO_BUFFER, count: 0 }
    }
}

pub struct Ring {
    ring: IoUring,
    buffers: Buffers,
    server: Option<Box<libc::sockaddr_in>>,
    /// Of the table of sockets, for those that were connected elsewhere.
    places_free: Vec<u32>,
    /// Sends since the last turn that complete only if they fail.
    silent: Vec<Silent>,
    /// What is submitted behind everything else of this turn.
    last: Vec<(squeue::Entry, Token)>,
    /// Something waits behind a send of this turn.
    is_behind: bool,
}

/// Where a send stands among those of its turn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Order {
    First,
    /// Servers work while clients are answered, and not the other way round.
    Last,
}

/// A short send. It is over when the system call that submits it returns, so a completion of its own tells nothing, and would
/// end a wait that has only begun.
struct Silent {
    token: Token,
    socket: Socket,
    pointer: *const u8,
    size: u32,
}

/// Longer ones may find their socket full, and complete when they are through.
const SILENT_MAX: usize = 16 * 1024;
/// Of a token's kind: a silent send.
const SILENT: u8 = 0x80;

impl Ring {
    /// # Panics
    /// If the kernel lacks something that the harness needs.
    pub fn new(buffers_count: u16, buffer_size: usize) -> Ring {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS).setup_submit_all().setup_single_issuer().setup_defer_taskrun();
        let ring = builder.build(SUBMISSIONS).expect("io_uring with DEFER_TASKRUN (kernel 6.1)");
        let sockets_max = raise_files_max().min(SOCKETS_MAX) as u32;
        ring.submitter().register_files_sparse(sockets_max).expect("a table of sockets");
        let buffers = Buffers::new(&ring, buffers_count, buffer_size);
        Ring {
            ring,
            buffers,
            server: None,
            places_free: (sockets_max - ADOPTED_MAX..sockets_max).collect(),
            silent: Vec::new(),
            last: Vec::new(),
            is_behind: false,
        }
    }

    /// Submits everything queued and waits until something has completed; `batch` then holds it.
    #[inline]
    pub fn turn(&mut self, batch: &mut Vec<Completion>) {
        batch.clear();
        self.buffers.publish();
        let mut last = std::mem::take(&mut self.last);
        for (entry, token) in last.drain(..) {
            self.push(entry, token);
        }
        self.last = last;
        // What waits behind a silent send would wait until something else happens, which may be never.
        let is_behind = std::mem::take(&mut self.is_behind) && !self.silent.is_empty();
        let wanted = usize::from(!is_behind);
        match self.ring.submit_and_wait(wanted) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) => {}
            Err(error) => panic!("io_uring_enter: {error}"),
        }
        batch.extend(self.ring.completion().map(|entry| Completion {
            token: Token::unpack(entry.user_data()),
            result: entry.result(),
            flags: entry.flags(),
        }));
        if !self.silent.is_empty() {
            self.settle_silent(batch);
        }
    }

    /// Puts completions of the silent sends in front: what they held is used again in this very turn.
    #[inline]
    fn settle_silent(&mut self, batch: &mut Vec<Completion>) {
        if batch.iter().any(|completion| completion.token.kind & SILENT != 0) {
            self.send_again(batch);
        }
        let heard = batch.len();
        batch.extend(self.silent.drain(..).map(|sent| Completion {
            token: Token { kind: sent.token.kind & !SILENT, ..sent.token },
            result: sent.size as i32,
            flags: 0,
        }));
        batch.rotate_left(heard);
    }

    /// Some found their sockets full: what is left of them waits for room.
    #[cold]
    fn send_again(&mut self, batch: &mut Vec<Completion>) {
        for at in (0..batch.len()).rev().filter(|&at| batch[at].token.kind & SILENT != 0).collect::<Vec<_>>() {
            let Completion { token, result, .. } = batch[at];
            let sent = self.silent.iter().position(|sent| sent.token.pack() == token.pack()).expect("it was sent");
            let Silent { token, socket, pointer, size } = self.silent.swap_remove(sent);
            let token = Token { kind: token.kind & !SILENT, ..token };
            if result < 0 && result != -libc::EAGAIN {
                batch[at].token = token;
                continue;
            }
            batch.remove(at);
            let done = result.max(0) as usize;
            // SAFETY: the bytes are the caller's until it hears of a completion.
            unsafe { self.send(socket, pointer.add(done), size as usize - done, token) }
        }
    }

    pub fn accept(&mut self, listener: &TcpListener, token: Token) {
        let entry = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd())).allocate_file_index(true);
        self.push(entry.build(), token);
    }

    pub fn open(&mut self, token: Token) {
        let place = types::DestinationSlot::auto_target();
        self.push(opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).file_index(Some(place)).build(), token);
    }

    /// Connects to `port` on loopback, the same port in every call.
    pub fn connect(&mut self, socket: Socket, port: u16, token: Token) {
        let address = self.server.get_or_insert_with(|| Box::new(dial::loopback(port)));
        let pointer: *const libc::sockaddr_in = &raw const **address;
        let entry = opcode::Connect::new(types::Fixed(socket.0), pointer.cast(), size_of::<libc::sockaddr_in>() as u32);
        self.push(entry.build(), token);
    }

    pub fn set_nodelay(&mut self, socket: Socket, token: Token) {
        static ON: libc::c_int = 1;
        let value: *const libc::c_int = &raw const ON;
        let (level, name) = (libc::IPPROTO_TCP as u32, libc::TCP_NODELAY as u32);
        self.push(opcode::SetSockOpt::new(types::Fixed(socket.0), level, name, value.cast(), 4).build(), token);
    }

    /// Registers a connected descriptor, at the table's end, where accepted sockets come last. Its place is used again
    /// only after `release`: the close of its last socket may still be queued.
    pub fn adopt(&mut self, descriptor: OwnedFd) -> Socket {
        let socket = Socket(self.places_free.pop().expect("fewer backends than places for them"));
        let updated = self.ring.submitter().register_files_update(socket.0, &[descriptor.as_raw_fd()]);
        updated.expect("a place in the table of sockets");
        socket
    }

    /// The close of an adopted socket has completed.
    pub fn release(&mut self, socket: Socket) {
        self.places_free.push(socket.0);
    }

    pub fn receive(&mut self, socket: Socket, token: Token) {
        self.push(opcode::RecvMulti::new(types::Fixed(socket.0), BUFFER_GROUP).build(), token);
    }

    pub fn cancel_receive(&mut self, receive: Token, token: Token) {
        self.push(opcode::AsyncCancel::new(receive.pack()).build(), token);
    }

    #[inline]
    pub fn received(&mut self, completion: &Completion) -> Received {
        if completion.result > 0 {
            let buffer = cqueue::buffer_select(completion.flags).expect("a receive with bytes names its buffer");
            self.buffers.taken(buffer, completion.result as u32);
            return Received::Bytes(BufferId(buffer));
        }
        match -completion.result {
            libc::ENOBUFS => Received::Starved,
            libc::ECANCELED => Received::Cancelled,
            _ => Received::End,
        }
    }

    #[inline]
    pub fn bytes(&self, buffer: BufferId) -> &[u8] {
        self.buffers.bytes(buffer.0)
    }

    #[inline]
    pub fn give(&mut self, buffer: BufferId) {
        self.buffers.spare.push(buffer.0);
    }

    #[inline]
    pub fn send_buffer(&mut self, socket: Socket, buffer: BufferId, token: Token, order: Order) {
        let bytes = self.buffers.bytes(buffer.0);
        let (pointer, size) = (bytes.as_ptr(), bytes.len());
        // SAFETY: the buffer is the caller's until it gives it back, which it does on this send's completion, and
        // its memory is never unmapped.
        unsafe { self.send_silently(socket, pointer, size, Token { buffer: buffer.0, ..token }, order) }
    }

    /// As `send_static`, but over within this turn, most likely.
    pub fn send_greeting(&mut self, socket: Socket, bytes: &'static [u8], token: Token) {
        // SAFETY: static memory.
        unsafe { self.send_silently(socket, bytes.as_ptr(), bytes.len(), token, Order::Last) }
    }

    /// As `send`; a short one is asked to complete only if it fails.
    #[inline]
    unsafe fn send_silently(&mut self, socket: Socket, pointer: *const u8, size: usize, token: Token, order: Order) {
        if size > SILENT_MAX {
            // SAFETY: the caller's promise.
            return unsafe { self.send(socket, pointer, size, token) };
        }
        let token = Token { kind: token.kind | SILENT, ..token };
        self.silent.push(Silent { token, socket, pointer, size: size as u32 });
        // With WAITALL a part is a failure too.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL | libc::MSG_DONTWAIT;
        let entry = opcode::Send::new(types::Fixed(socket.0), pointer, size as u32).flags(flags).build();
        let entry = entry.flags(squeue::Flags::SKIP_SUCCESS);
        match order {
            Order::First => self.push(entry, token),
            Order::Last => self.last.push((entry, token)),
        }
    }

    /// A buffer waits until an earlier send to its socket is over.
    #[inline]
    pub fn wait_behind(&mut self) {
        self.is_behind = true;
    }

    pub fn send_static(&mut self, socket: Socket, bytes: &'static [u8], token: Token) {
        // SAFETY: static memory.
        unsafe { self.send(socket, bytes.as_ptr(), bytes.len(), token) }
    }

    /// The whole of `size` bytes leaves before the completion, however often the socket is full.
    ///
    /// # Safety
    /// The bytes stay in place, unchanged, until the completion.
    #[inline]
    pub unsafe fn send(&mut self, socket: Socket, pointer: *const u8, size: usize, token: Token) {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = opcode::Send::new(types::Fixed(socket.0), pointer, size as u32).flags(flags);
        self.push(entry.build(), token);
    }

    /// The buffer that a completed `send_buffer` sent.
    #[inline]
    pub fn sent(completion: &Completion) -> Option<BufferId> {
        (completion.token.buffer != NO_BUFFER).then_some(BufferId(completion.token.buffer))
    }

    pub fn shutdown(&mut self, socket: Socket, token: Token) {
        // Behind what is sent to it.
        self.last.push((opcode::Shutdown::new(types::Fixed(socket.0), libc::SHUT_RDWR).build(), token));
    }

    pub fn close(&mut self, socket: Socket, token: Token) {
        self.push(opcode::Close::new(types::Fixed(socket.0)).build(), token);
    }

    /// Completes after `time`, which must stay in place until then.
    pub fn timeout(&mut self, time: &'static types::Timespec, token: Token) {
        self.push(opcode::Timeout::new(time).build(), token);
    }

    #[inline]
    pub fn append(&mut self, chain: &mut Chain, buffer: BufferId) {
        self.buffers.next[usize::from(buffer.0)] = NO_BUFFER;
        if chain.head == NO_BUFFER {
            chain.head = buffer.0;
        } else {
            self.buffers.next[usize::from(chain.tail)] = buffer.0;
        }
        chain.tail = buffer.0;
        chain.count += 1;
    }

    #[inline]
    pub fn take_first(&mut self, chain: &mut Chain) -> Option<BufferId> {
        let first = chain.head;
        if first == NO_BUFFER {
            return None;
        }
        chain.head = self.buffers.next[usize::from(first)];
        chain.count -= 1;
        Some(BufferId(first))
    }

    #[inline]
    fn push(&mut self, entry: squeue::Entry, token: Token) {
        let entry = entry.user_data(token.pack());
        // SAFETY: what the entry points to is kept in place by the callers, see each.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit().expect("submission");
        }
    }
}

pub fn error(result: i32) -> std::io::Error {
    std::io::Error::from_raw_os_error(-result)
}

struct Buffers {
    entries: *mut types::BufRingEntry,
    memory: *mut u8,
    size: usize,
    stride: usize,
    mask: u16,
    tail: u16,
    sizes: Vec<u32>,
    next: Vec<u16>,
    /// Not with the kernel. The last one given back is the first one lent, while it is still in the cache.
    spare: Vec<u16>,
    /// Buffers that the kernel has, and how many it should have.
    lent: usize,
    lent_target: usize,
    chatter_since_publish: usize,
}

impl Buffers {
    fn new(ring: &IoUring, count: u16, size: usize) -> Buffers {
        assert!(count.is_power_of_two());
        let stride = size + BUFFER_COLOUR;
        let entries: *mut types::BufRingEntry = map(usize::from(count) * size_of::<types::BufRingEntry>()).cast();
        let memory = map(usize::from(count) * stride);
        let sizes = vec![0; usize::from(count)];
        let next = vec![NO_BUFFER; usize::from(count)];
        let mut buffers = Buffers {
            entries,
            memory,
            size,
            stride,
            mask: count - 1,
            tail: 0,
            sizes,
            next,
            spare: (0..count).rev().collect(),
            lent: 0,
            lent_target: LENT_MIN,
            chatter_since_publish: 0,
        };
        // SAFETY: both mappings are as large as the ring needs and are never unmapped.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(entries as u64, count, BUFFER_GROUP, 0).expect("buffer ring");
        }
        buffers.publish();
        buffers
    }

    #[inline]
    fn bytes(&self, buffer: u16) -> &[u8] {
        let index = usize::from(buffer);
        // SAFETY: inside the mapping, written by the kernel before the completion that set `sizes`, and not given
        // back while the caller holds it.
        unsafe { std::slice::from_raw_parts(self.memory.add(index * self.stride), self.sizes[index] as usize) }
    }

    #[inline]
    fn taken(&mut self, buffer: u16, size: u32) {
        self.sizes[usize::from(buffer)] = size;
        self.lent -= 1;
        self.chatter_since_publish += usize::from(size as usize * 4 < self.size);
    }

    /// Lends as many as short messages lately took in a turn, twice over: enough for bursts, few enough to stay in the
    /// cache. A stream takes all there are, and gains nothing from more.
    #[inline]
    fn publish(&mut self) {
        let faded = self.lent_target - self.lent_target / LENT_FADE;
        self.lent_target = faded.max(2 * self.chatter_since_publish).max(LENT_MIN);
        self.chatter_since_publish = 0;
        while self.lent < self.lent_target {
            let Some(buffer) = self.spare.pop() else {
                break;
            };
            self.lend(buffer);
        }
        // SAFETY: the tail lives in the first entry of the mapping and only this thread writes it.
        unsafe {
            let tail = types::BufRingEntry::tail(self.entries).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }

    #[inline]
    fn lend(&mut self, buffer: u16) {
        // SAFETY: both places are inside their mappings; the kernel does not look past the published tail.
        unsafe {
            let entry = &mut *self.entries.add(usize::from(self.tail & self.mask));
            entry.set_addr(self.memory.add(usize::from(buffer) * self.stride) as u64);
            entry.set_len(self.size as u32);
            entry.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
        self.lent += 1;
    }
}

fn map(size: usize) -> *mut u8 {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: an anonymous mapping at a place of the kernel's choice.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0) };
    assert!(memory != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
    memory.cast()
}

/// Raises the soft limit of open files to the hard one, and returns it.
fn raise_files_max() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid `rlimit`.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    limit.rlim_cur
}
