//! The HTTP end of the metrics: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever starts and stops qcp.
//!
//! Not a web server: a request is a line and headers that nobody reads, an answer closes its connection. Everything has
//! a bound: connections at a time, bytes of a request, time to send it and to take the answer. A scraper that hangs
//! keeps one of a few threads for some seconds, and neither the shards nor `qcp-ctrl`.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Who is asked more is told to come back.
const CONNECTIONS_MAX: usize = 8;
const REQUEST_SIZE_MAX: usize = 8 * 1024;
/// For a request to arrive.
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);
/// For an answer to be taken.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// Until a process that is out of descriptors may have some again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// An answer is made of strings on the heap, not on the stack.
const STACK_SIZE: usize = 256 * 1024;

/// What the pages say. Called on a thread of its own, and must come to an end by itself.
pub trait Pages: Send + Sync + 'static {
    /// `/metrics`, or why not.
    fn metrics(&self) -> Result<String, String>;
    /// `/healthz`: all shards answer; or why not.
    fn health(&self) -> Result<(), String>;
    /// `/readyz`: clients can be served; or why not.
    fn readiness(&self) -> Result<(), String>;
}

/// Listens; refuses to start where that cannot be.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
}

/// What is asked here.
pub struct Scraped {
    listener: TcpListener,
    stop: EventFd,
}

impl Scraped {
    /// For another process, to go on with.
    pub fn socket(&self) -> io::Result<OwnedFd> {
        Ok(self.listener.try_clone()?.into())
    }

    /// Answers nobody any more. Whoever has connected by then is another process's, if that has the socket too.
    pub fn stop(&self) {
        // A counter that was never written to has room.
        let _ = self.stop.write(1);
    }
}

/// Answers until the process ends, or is told to stop.
pub fn serve(listener: TcpListener, pages: impl Pages) -> io::Result<Scraped> {
    let pages = Arc::new(pages);
    let count = Arc::new(AtomicUsize::new(0));
    // Two processes may wait for one connection: the one that comes too late must not wait in accept.
    listener.set_nonblocking(true)?;
    let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
    let scraped = Scraped { listener: listener.try_clone()?, stop };
    let told = scraped.stop.as_fd().try_clone_to_owned()?;
    let accept = move || {
        loop {
            let mut both =
                [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(told.as_fd(), PollFlags::POLLIN)];
            let polled = poll(&mut both, PollTimeout::NONE);
            if polled.is_ok() && both[1].any() == Some(true) {
                return;
            }
            match listener.accept() {
                Ok((stream, _)) => begin(stream, &pages, &count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    log::warn!("metrics: cannot accept: {error}");
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    };
    thread::Builder::new().name("qcp-metrics".to_owned()).stack_size(STACK_SIZE).spawn(accept)?;
    Ok(scraped)
}

fn begin<P: Pages>(stream: TcpStream, pages: &Arc<P>, count: &Arc<AtomicUsize>) {
    let place = Place::take(count);
    let Some(place) = place else {
        // What fits into the socket's buffer leaves at once; nobody waits for it.
        let _ = stream.set_nonblocking(true);
        let _ = (&stream).write_all(&answer(503, "text/plain", "too many connections\n", false));
        return;
    };
    let pages = pages.clone();
    let converse = move || {
        // A peer that is gone, or too slow, is no concern of anybody's.
        let _ = converse(&stream, &*pages);
        drop(place);
    };
    if let Err(error) = thread::Builder::new().name("qcp-scrape".to_owned()).stack_size(STACK_SIZE).spawn(converse) {
        log::warn!("metrics: no thread: {error}");
    }
}

/// One of the connections at a time.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(count: &Arc<AtomicUsize>) -> Option<Place> {
        let taken = count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < CONNECTIONS_MAX).then_some(count + 1));
        taken.ok().map(|_| Place(count.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn converse(stream: &TcpStream, pages: &impl Pages) -> io::Result<()> {
    let answer = match receive(stream)? {
        Some(request) => respond(&request, pages),
        None => answer(431, "text/plain", "the request is too long\n", false),
    };
    send(stream, &answer)
}

/// The head of a request; `None`: it is too long. An error where it does not come in time.
fn receive(mut stream: &TcpStream) -> io::Result<Option<Vec<u8>>> {
    let until = Instant::now() + REQUEST_PATIENCE;
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    loop {
        if let Some(end) = head_end(&request) {
            request.truncate(end);
            return Ok(Some(request));
        }
        if request.len() >= REQUEST_SIZE_MAX {
            return Ok(None);
        }
        stream.set_read_timeout(Some(left(until)?))?;
        match stream.read(&mut piece) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => request.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Where the empty line begins that ends the head.
fn head_end(request: &[u8]) -> Option<usize> {
    let windows = |mark: &[u8]| request.windows(mark.len()).position(|window| window == mark);
    windows(b"\r\n\r\n").or_else(|| windows(b"\n\n"))
}

fn send(mut stream: &TcpStream, mut answer: &[u8]) -> io::Result<()> {
    let until = Instant::now() + ANSWER_PATIENCE;
    while !answer.is_empty() {
        stream.set_write_timeout(Some(left(until)?))?;
        match stream.write(answer) {
            Ok(count) => answer = &answer[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.shutdown(std::net::Shutdown::Write)
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn respond(request: &[u8], pages: &impl Pages) -> Vec<u8> {
    let line = request.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line.trim_ascii());
    let mut words = line.split(' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let (Some(method), Some(target), Some("HTTP/1.1" | "HTTP/1.0")) = (method, target, version) else {
        return answer(400, "text/plain", "not an HTTP/1.1 request\n", false);
    };
    let head_only = method == "HEAD";
    if !head_only && method != "GET" {
        return answer(405, "text/plain", "GET and HEAD only\n", false);
    }
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let plain = |outcome: Result<(), String>| match outcome {
        Ok(()) => answer(200, "text/plain", "ok\n", head_only),
        Err(reason) => answer(503, "text/plain", &format!("{reason}\n"), head_only),
    };
    match path {
        "/metrics" => match pages.metrics() {
            Ok(page) => answer(200, "text/plain; version=0.0.4; charset=utf-8", &page, head_only),
            Err(reason) => plain(Err(reason)),
        },
        "/healthz" => plain(pages.health()),
        "/readyz" => plain(pages.readiness()),
        _ => answer(404, "text/plain", "there are /metrics, /healthz and /readyz\n", head_only),
    }
}

fn answer(status: u16, kind: &str, body: &str, head_only: bool) -> Vec<u8> {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        _ => "Service Unavailable",
    };
    let allow = if status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
    let size = body.len();
    let body = if head_only { "" } else { body };
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n{allow}Connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many lines.
    struct Fixed(usize);

    impl Pages for Fixed {
        fn metrics(&self) -> Result<String, String> {
            Ok("a 1\n".repeat(self.0))
        }

        fn health(&self) -> Result<(), String> {
            Ok(())
        }

        fn readiness(&self) -> Result<(), String> {
            Err("draining".to_owned())
        }
    }

    fn start(lines: usize) -> SocketAddr {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        serve(listener, Fixed(lines)).unwrap();
        address
    }

    fn try_ask(address: SocketAddr, request: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn ask(address: SocketAddr, request: &str) -> String {
        try_ask(address, request).unwrap()
    }

    #[test]
    fn each_request_has_its_answer() {
        let address = start(500_000);
        let check = |request: &str, status: &str, body: &str| {
            let answer = ask(address, request);
            let (head, found) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {head}");
            assert_eq!(found, body, "{request}");
            assert!(head.contains("\r\nConnection: close"));
        };
        check("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK", "ok\n");
        check("GET /healthz?x=1 HTTP/1.0\n\n", "200 OK", "ok\n");
        check("HEAD /healthz HTTP/1.1\r\n\r\n", "200 OK", "");
        check("GET /readyz HTTP/1.1\r\n\r\n", "503 Service Unavailable", "draining\n");
        check("GET / HTTP/1.1\r\n\r\n", "404 Not Found", "there are /metrics, /healthz and /readyz\n");
        check("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed", "GET and HEAD only\n");
        check("hello\r\n\r\n", "400 Bad Request", "not an HTTP/1.1 request\n");
        check("\r\n\r\n", "400 Bad Request", "not an HTTP/1.1 request\n");
        let long = format!("GET /healthz HTTP/1.1\r\nX: {}", "x".repeat(REQUEST_SIZE_MAX));
        check(&long, "431 Request Header Fields Too Large", "the request is too long\n");
        let page = ask(address, "GET /metrics HTTP/1.1\r\n\r\n");
        assert!(page.ends_with("a 1\n") && page.contains("Content-Length: 2000000\r\n"));
    }

    /// Half a request, or none, and answers that nobody takes: others are answered as long as there is a place, refused
    /// at once when there is none, and served again when the time of the slow ones is over.
    #[test]
    fn the_slow_hold_up_nobody() {
        // More than the buffers of two sockets take.
        let address = start(10_000_000);
        let slow: Vec<TcpStream> = (0..CONNECTIONS_MAX - 1)
            .map(|index| {
                let mut stream = TcpStream::connect(address).unwrap();
                nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::RcvBuf, &4096).unwrap();
                let request = if index % 2 == 0 { "GET /met" } else { "GET /metrics HTTP/1.1\r\n\r\n" };
                stream.write_all(request.as_bytes()).unwrap();
                stream
            })
            .collect();
        let begun = Instant::now();
        assert!(ask(address, "GET /healthz HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"));
        let _last = TcpStream::connect(address).unwrap();
        let until = Instant::now() + Duration::from_secs(3);
        loop {
            let mut stream = TcpStream::connect(address).unwrap();
            let mut answer = String::new();
            stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            // Nothing is asked, so that only a refusal is answered.
            if stream.read_to_string(&mut answer).is_ok_and(|_| answer.starts_with("HTTP/1.1 503")) {
                break;
            }
            assert!(Instant::now() < until, "a connection above the bound is not refused");
        }
        assert!(begun.elapsed() < REQUEST_PATIENCE, "somebody waited for the slow");
        drop(slow);
        let until = Instant::now() + REQUEST_PATIENCE + ANSWER_PATIENCE;
        let served =
            || try_ask(address, "GET /healthz HTTP/1.1\r\n\r\n").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"));
        while !served() {
            assert!(Instant::now() < until, "places do not come back");
            thread::sleep(Duration::from_millis(100));
        }
    }
}
