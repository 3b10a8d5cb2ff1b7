//! Writes the manual pages and the shells' completions, as they follow from the command lines of both programs:
//! `cargo run --example manual -- DIRECTORY`.

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

#[path = "../src/bin/qcp-ctrl/arguments.rs"]
#[allow(dead_code)]
mod ctrl;
#[path = "../src/bin/qcp/arguments.rs"]
#[allow(dead_code)]
mod pooler;

#[allow(dead_code)]
fn main() -> io::Result<()> {
    let Some(directory) = std::env::args_os().nth(1) else {
        return Err(io::Error::other("into which directory?"));
    };
    write(Path::new(&directory))
}

/// Pages go to `man`, completions to a directory for each shell.
pub fn write(directory: &Path) -> io::Result<()> {
    let man = directory.join("man");
    fs::create_dir_all(&man)?;
    for command in [pooler::Arguments::command().name("qcp"), ctrl::Arguments::command()] {
        // One page for each subcommand too, as qcp-ctrl-show(1).
        clap_mangen::generate_to(command.clone(), &man)?;
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let of_shell = directory.join(shell.to_string());
            fs::create_dir_all(&of_shell)?;
            let mut command = command.clone();
            let name = command.get_name().to_owned();
            clap_complete::generate_to(shell, &mut command, name, &of_shell)?;
        }
    }
    Ok(())
}
