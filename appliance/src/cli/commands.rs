//! The commands that ask a running appliance: each is one or two calls of its API, shown as text or, with `--json`, as it came.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::{Value, json};

use super::client::Client;
use super::table;

/// Between two looks whether a phone has answered.
const LOOK: std::time::Duration = std::time::Duration::from_millis(500);

#[derive(Debug, Subcommand)]
pub(super) enum PhonesCommand {
    /// All phones.
    List,
    /// One phone.
    Show { phone: String },
    /// Let a phone out of quarantine.
    Release {
        phone: String,
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Put a phone into quarantine.
    Quarantine {
        phone: String,
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Compare phone and flash by root hash.
    Prove { phone: String },
    /// Paths that phone and help-desk changed differently.
    Conflicts { phone: String },
    /// Say who uses a phone, and on whose network: what reports are about.
    Assign {
        phone: String,
        #[arg(long, default_value = "")]
        person: String,
        #[arg(long, default_value = "")]
        department: String,
        #[arg(long, default_value = "")]
        carrier: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum CodeCommand {
    /// Make an enrolment code: it lets one phone in, once.
    New {
        /// Who it is for.
        #[arg(long, default_value = "")]
        note: String,
        /// Hours until it expires.
        #[arg(long, default_value_t = 24)]
        hours: u32,
    },
    /// All codes.
    List,
    /// Delete a code.
    Delete { id: String },
}

#[derive(Debug, Subcommand)]
pub(super) enum TwinCommand {
    /// Start the twin, or resume it.
    Start { phone: String },
    /// Save the twin's machine and end its process.
    Park { phone: String },
    /// End the twin; the next start boots anew.
    Stop { phone: String },
    /// Copy the running twin, or begin at a position of the log, to try things on; prints the copy's number.
    Fork {
        phone: String,
        /// With the phone's files as of this position; the twin need not run.
        #[arg(long, value_name = "POSITION")]
        at: Option<u64>,
    },
    /// End a copy.
    EndFork { phone: String, number: u32 },
    /// How the twin is.
    Show { phone: String },
    /// The twin's screen, as PNG.
    Screenshot { phone: String, file: PathBuf },
    /// The last output of the twin's serial console.
    Console { phone: String },
}

#[derive(Debug, Subcommand)]
pub(super) enum FilesCommand {
    /// A directory of the phone's flash.
    Ls {
        phone: String,
        #[arg(default_value = "/")]
        path: PathBuf,
        /// Position of the log; the latest if absent.
        #[arg(long)]
        position: Option<u64>,
    },
    /// A file of the phone's flash.
    Get {
        phone: String,
        path: PathBuf,
        /// Where to write it; `-` for standard output. The file's own name if absent.
        #[arg(long, short)]
        output: Option<PathBuf>,
        #[arg(long)]
        position: Option<u64>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ReportCommand {
    /// The reports that there are.
    List,
    /// Run a report.
    Run {
        name: String,
        /// How many days back it reaches, to now.
        #[arg(long, default_value_t = 30)]
        days: u32,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum UserCommand {
    /// All users.
    List,
    /// Make a user; reads the password from standard input.
    Add {
        name: String,
        /// helpdesk, admin or mai
        #[arg(long)]
        role: crate::identity::Role,
    },
    /// Set a user's password; reads it from standard input.
    Passwd { name: String },
    /// Change a user's role.
    Role { name: String, role: crate::identity::Role },
    /// Remove a user.
    Remove { name: String },
}

pub(super) async fn phones(client: &Client, command: PhonesCommand, json_wanted: bool) -> anyhow::Result<()> {
    match command {
        PhonesCommand::List => {
            let reply = client.get("/api/phones").await?;
            let columns = ["serial", "id", "model", "assignment.person", "standing", "connected", "sync.applied", "twin.state"];
            show_list(&reply, "phones", &columns, json_wanted)
        }
        PhonesCommand::Show { phone } => show(&client.get(&format!("/api/phones/{}", segment(&phone))).await?),
        PhonesCommand::Release { phone, reason } => {
            let path = format!("/api/phones/{}/release", segment(&phone));
            done(&client.post(&path, json!({"reason": reason})).await?, json_wanted, "standing")
        }
        PhonesCommand::Quarantine { phone, reason } => {
            let path = format!("/api/phones/{}/quarantine", segment(&phone));
            done(&client.post(&path, json!({"reason": reason})).await?, json_wanted, "standing")
        }
        PhonesCommand::Prove { phone } => {
            let path = format!("/api/phones/{}", segment(&phone));
            let before = client.get(&path).await?["sync"]["proof"]["at"].clone();
            client.post(&format!("{path}/prove"), json!({})).await?;
            for _ in 0..60 {
                let proof = client.get(&path).await?["sync"]["proof"].clone();
                if proof["at"] != before {
                    return show(&proof);
                }
                tokio::time::sleep(LOOK).await;
            }
            bail!("the phone has not told its root hash yet; `pollux phones show` will have it")
        }
        PhonesCommand::Conflicts { phone } => {
            let reply = client.get(&format!("/api/phones/{}/conflicts", segment(&phone))).await?;
            show_list(&reply, "conflicts", &["id", "at", "path", "text", "dismissed"], json_wanted)
        }
        PhonesCommand::Assign { phone, person, department, carrier } => {
            let path = format!("/api/phones/{}/assignment", segment(&phone));
            show(&client.put(&path, json!({"person": person, "department": department, "carrier": carrier})).await?)
        }
    }
}

pub(super) async fn code(client: &Client, command: CodeCommand, json_wanted: bool) -> anyhow::Result<()> {
    match command {
        CodeCommand::New { note, hours } => {
            let reply = client.post("/api/codes", json!({"note": note, "expires_in_hours": hours})).await?;
            if json_wanted {
                return show(&reply);
            }
            println!("Code:       {}", text(&reply["code"]));
            println!("CA SHA-256: {}", text(&reply["ca_sha256"]));
            println!("Expires:    {}", text(&reply["expires_at"]));
            Ok(())
        }
        CodeCommand::List => {
            let reply = client.get("/api/codes").await?;
            show_list(&reply, "codes", &["id", "state", "note", "by", "expires_at", "used_by"], json_wanted)
        }
        CodeCommand::Delete { id } => client.delete(&format!("/api/codes/{}", segment(&id))).await,
    }
}

pub(super) async fn twin(client: &Client, command: TwinCommand, json_wanted: bool) -> anyhow::Result<()> {
    let path = |phone: &str, end: &str| format!("/api/phones/{}/twin{end}", segment(phone));
    match command {
        TwinCommand::Start { phone } => {
            done(&client.post(&path(&phone, "/start"), json!({})).await?, json_wanted, "state")
        }
        TwinCommand::Park { phone } => {
            done(&client.post(&path(&phone, "/park"), json!({})).await?, json_wanted, "state")
        }
        TwinCommand::Stop { phone } => {
            done(&client.post(&path(&phone, "/stop"), json!({})).await?, json_wanted, "state")
        }
        TwinCommand::Fork { phone, at } => {
            done(&client.post(&path(&phone, "/forks"), json!({"position": at})).await?, json_wanted, "number")
        }
        TwinCommand::EndFork { phone, number } => client.delete(&path(&phone, &format!("/forks/{number}"))).await,
        TwinCommand::Show { phone } => show(&client.get(&path(&phone, "")).await?),
        TwinCommand::Screenshot { phone, file } => {
            let picture = client.download(&path(&phone, "/screen.png")).await?.bytes().await?;
            std::fs::write(&file, picture).with_context(|| format!("cannot write {}", file.display()))
        }
        TwinCommand::Console { phone } => {
            let printed = client.download(&path(&phone, "/console")).await?.text().await?;
            printed.lines().for_each(|line| println!("{}", table::plain(line)));
            Ok(())
        }
    }
}

pub(super) async fn files(client: &Client, command: FilesCommand, json_wanted: bool) -> anyhow::Result<()> {
    let query = |path: &PathBuf, position: Option<u64>| {
        use std::os::unix::ffi::OsStrExt;
        let position = position.map(|position| format!("&position={position}")).unwrap_or_default();
        format!("?path={}{position}", crate::http::encode_path(path.as_os_str().as_bytes()))
    };
    match command {
        FilesCommand::Ls { phone, path, position } => {
            let reply = client.get(&format!("/api/phones/{}/files{}", segment(&phone), query(&path, position))).await?;
            show_list(&reply, "entries", &["kind", "mode", "uid", "size", "modified_at", "name"], json_wanted)
        }
        FilesCommand::Get { phone, path, output, position } => {
            let url = format!("/api/phones/{}/files/content{}", segment(&phone), query(&path, position));
            let mut response = client.download(&url).await?;
            let name = output.or_else(|| path.file_name().map(PathBuf::from)).context("which file?")?;
            let mut out: Box<dyn Write> = match name.as_os_str() == "-" {
                true => Box::new(std::io::stdout()),
                false => Box::new(
                    std::fs::File::create(&name).with_context(|| format!("cannot write {}", name.display()))?,
                ),
            };
            while let Some(piece) = response.chunk().await? {
                out.write_all(&piece)?;
            }
            Ok(out.flush()?)
        }
    }
}

pub(super) async fn report(client: &Client, command: ReportCommand, json_wanted: bool) -> anyhow::Result<()> {
    match command {
        ReportCommand::List => {
            show_list(&client.get("/api/reports").await?, "reports", &["name", "title", "about"], json_wanted)
        }
        ReportCommand::Run { name, days } => {
            let to = time::OffsetDateTime::now_utc();
            let from = to - time::Duration::days(days.into());
            let at = |time: time::OffsetDateTime| time.format(&time::format_description::well_known::Rfc3339);
            let query = format!("from={}&to={}", at(from)?, at(to)?);
            let answer = client.get(&format!("/api/reports/{}?{query}", segment(&name))).await?;
            if json_wanted {
                return show(&answer);
            }
            let columns: Vec<&str> = list(&answer["columns"]).iter().filter_map(|column| column["name"].as_str()).collect();
            let row = |row: &Value| columns.iter().zip(list(row)).map(|(name, cell)| ((*name).to_owned(), cell.clone())).collect();
            let rows: Vec<Value> = list(&answer["rows"]).iter().map(|cells| Value::Object(row(cells))).collect();
            print!("{}", table::render(&columns, &rows));
            for unread in list(&answer["unread"]) {
                let field = |key: &str| table::plain(&text(&unread[key]));
                eprintln!("not all is in it of {} ({}): {}", field("person"), field("phone"), field("trouble"));
            }
            Ok(())
        }
    }
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

pub(super) async fn user(client: &Client, command: UserCommand, json_wanted: bool) -> anyhow::Result<()> {
    match command {
        UserCommand::List => {
            show_list(&client.get("/api/users").await?, "users", &["name", "role", "created_at"], json_wanted)
        }
        UserCommand::Add { name, role } => {
            let body = json!({"name": name, "role": role, "password": password()?});
            done(&client.post("/api/users", body).await?, json_wanted, "role")
        }
        UserCommand::Passwd { name } => {
            let body = json!({"password": password()?});
            client.patch(&format!("/api/users/{}", segment(&name)), body).await.map(drop)
        }
        UserCommand::Role { name, role } => {
            client.patch(&format!("/api/users/{}", segment(&name)), json!({"role": role})).await.map(drop)
        }
        UserCommand::Remove { name } => client.delete(&format!("/api/users/{}", segment(&name))).await,
    }
}

fn password() -> anyhow::Result<String> {
    eprint!("Password (at least 10 characters): ");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("cannot read the password")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

pub(super) fn show(value: &Value) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

fn show_list(reply: &Value, key: &str, columns: &[&str], json_wanted: bool) -> anyhow::Result<()> {
    if json_wanted {
        return show(reply);
    }
    print!("{}", table::render(columns, list(&reply[key])));
    Ok(())
}

fn done(reply: &Value, json_wanted: bool, key: &str) -> anyhow::Result<()> {
    if json_wanted {
        return show(reply);
    }
    println!("{}", text(&reply[key]));
    Ok(())
}

pub(super) fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// One segment of a URL's path.
pub(super) fn segment(text: &str) -> String {
    crate::http::encode_path(text.as_bytes()).replace('/', "%2F")
}
