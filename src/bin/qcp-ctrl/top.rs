//! `qcp-ctrl top`: asks the pooler again and again and draws what it says, until somebody presses q.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use qcp::control::client::{Connection, Failure};
use qcp::control::command::Command;
use qcp::control::top::{Screen, Top};
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Terminal};
use serde::Deserialize;

use super::{ANSWER_PATIENCE, print_text};

/// Of the one screen that is printed where there is no terminal.
const WIDTH: u16 = 200;
const HEIGHT: u16 = 60;

/// What somebody at the terminal wants.
enum Wish {
    End,
    Again,
}

pub fn run(candidates: &[PathBuf], every: Duration) -> Result<(), Failure> {
    let started = Instant::now();
    let mut screen = Screen::default();
    // Somebody has to be there at first; later it may come and go.
    screen.observe(started.elapsed(), ask(candidates)?);
    if !io::stdout().is_terminal() {
        std::thread::sleep(every);
        screen.observe(started.elapsed(), ask(candidates)?);
        print_text(&one_screen(&screen));
        return Ok(());
    }
    let mut terminal = ratatui::init();
    let outcome = watch(&mut terminal, &mut screen, candidates, every, started);
    ratatui::restore();
    outcome.map_err(|error| Failure::Refused(format!("the terminal: {error}")))
}

fn ask(candidates: &[PathBuf]) -> Result<Top, Failure> {
    let reply = Connection::open(candidates, ANSWER_PATIENCE, Instant::now)?.ask(Command::Top, ANSWER_PATIENCE)?;
    Top::deserialize(&reply.value).map_err(|error| Failure::Refused(format!("its answer is not understood: {error}")))
}

fn watch(
    terminal: &mut DefaultTerminal,
    screen: &mut Screen,
    candidates: &[PathBuf],
    every: Duration,
    started: Instant,
) -> io::Result<()> {
    // The first rates soon.
    let mut next = Instant::now() + every.min(Duration::from_millis(500));
    loop {
        terminal.draw(|frame| screen.draw(frame))?;
        match wait_for_key(screen, next)? {
            Some(Wish::End) => return Ok(()),
            None => continue,
            Some(Wish::Again) => {}
        }
        match ask(candidates) {
            Ok(top) => screen.observe(started.elapsed(), top),
            Err(failure) => screen.note_trouble(failure.to_string()),
        }
        next = Instant::now() + every;
    }
}

/// Until `next`, or a key; `None`: draw again, ask later.
fn wait_for_key(screen: &mut Screen, next: Instant) -> io::Result<Option<Wish>> {
    if !event::poll(next.saturating_duration_since(Instant::now()))? {
        return Ok(Some(Wish::Again));
    }
    let Event::Key(key) = event::read()? else { return Ok(None) };
    if key.kind == KeyEventKind::Release {
        return Ok(None);
    }
    Ok(match key.code {
        KeyCode::Char('q') | KeyCode::Esc => Some(Wish::End),
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Wish::End),
        KeyCode::Char(' ') => Some(Wish::Again),
        code => {
            screen.scroll(match code {
                KeyCode::Down | KeyCode::Char('j') => 1,
                KeyCode::Up | KeyCode::Char('k') => -1,
                KeyCode::PageDown => 10,
                KeyCode::PageUp => -10,
                KeyCode::Home => isize::MIN / 2,
                _ => 0,
            });
            None
        }
    })
}

fn one_screen(screen: &Screen) -> String {
    let mut terminal = Terminal::new(TestBackend::new(WIDTH, HEIGHT)).expect("memory is enough");
    terminal.draw(|frame| screen.draw(frame)).expect("it is drawn into memory");
    let buffer = terminal.backend().buffer();
    let line = |y| (0..WIDTH).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    let lines = (0..HEIGHT).map(|y| line(y).trim_end().to_owned() + "\n").collect::<String>();
    lines.trim_end().to_owned() + "\n"
}
