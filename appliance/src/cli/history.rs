//! Looking back: `log`, `diff` and `find`.

use anyhow::Context;
use clap::Args;
use serde_json::Value;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::HowArguments;
use super::client::Client;
use super::commands::{list, segment, show, text};
use super::table::plain;

/// How often `log --follow` looks for more.
const FOLLOW_EVERY: std::time::Duration = std::time::Duration::from_millis(500);
/// Events shown at first if nothing is said.
const EVENTS_DEFAULT: usize = 50;

#[derive(Debug, Args)]
pub(super) struct LogArguments {
    phone: String,
    /// How many events; without a filter the last ones, 50 if nothing is said.
    #[arg(long)]
    limit: Option<usize>,
    /// Go on as the log grows.
    #[arg(long, short, conflicts_with_all = ["kind", "path", "from", "to"])]
    follow: bool,
    /// Only events of this kind: mmi, file, control, command, outcome.
    #[arg(long)]
    kind: Option<String>,
    /// Only what is about this path, or a path beneath it.
    #[arg(long)]
    path: Option<PathBuf>,
    /// Only from then on: 2026-11-27, 2026-11-27T09:30, or RFC 3339; UTC unless said.
    #[arg(long, value_parser = moment)]
    from: Option<OffsetDateTime>,
    /// Only up to then.
    #[arg(long, value_parser = moment)]
    to: Option<OffsetDateTime>,
    #[command(flatten)]
    how: HowArguments,
}

#[derive(Debug, Args)]
pub(super) struct DiffArguments {
    phone: String,
    /// A position of the phone's log; 0 is before anything happened.
    from: u64,
    /// Another.
    to: u64,
    /// How many changes at most.
    #[arg(long, default_value_t = 1000)]
    limit: usize,
    #[command(flatten)]
    how: HowArguments,
}

#[derive(Debug, Args)]
pub(super) struct FindArguments {
    /// Of file names: `*` stands for anything, `?` for one byte. With a slash it is of whole paths.
    pattern: String,
    /// As of then, by each phone's clock: 2026-11-27, 2026-11-27T09:30, or RFC 3339; UTC unless said.
    #[arg(long, value_parser = moment)]
    at: Option<OffsetDateTime>,
    /// Only files with this text in them.
    #[arg(long)]
    contents: Option<String>,
    /// Only beneath this path.
    #[arg(long, default_value = "/")]
    beneath: PathBuf,
    /// Only on this phone; can be repeated. All phones if absent.
    #[arg(long = "phone")]
    phones: Vec<String>,
    /// How many matches at most.
    #[arg(long, default_value_t = 1000)]
    limit: usize,
    #[command(flatten)]
    how: HowArguments,
}

/// A time as people write it.
fn moment(text: &str) -> Result<OffsetDateTime, String> {
    let whole = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        16 => format!("{text}:00Z"),
        19 => format!("{text}Z"),
        _ => text.to_owned(),
    };
    OffsetDateTime::parse(&whole.replacen(' ', "T", 1), &Rfc3339).map_err(|_| "no time like 2026-11-27T09:30".to_owned())
}

fn parameter(name: &str, value: &[u8]) -> String {
    format!("&{name}={}", crate::http::encode_path(value))
}

fn time_parameter(name: &str, time: Option<OffsetDateTime>) -> anyhow::Result<String> {
    let text = time.map(|time| time.format(&Rfc3339)).transpose()?;
    Ok(text.map_or_else(String::new, |text| parameter(name, text.as_bytes())))
}

pub(super) async fn log(arguments: LogArguments) -> anyhow::Result<()> {
    let LogArguments { phone, limit, follow, kind, path, from, to, how } = arguments;
    let client = Client::connect(&how.data.data)?;
    let base = format!("/api/phones/{}/log", segment(&phone));
    let mut filter = kind.map_or_else(String::new, |kind| parameter("kind", kind.as_bytes()));
    filter += &path.map_or_else(String::new, |path| parameter("path", path.as_os_str().as_bytes()));
    filter += &(time_parameter("from", from)? + &time_parameter("to", to)?);
    if !filter.is_empty() {
        return searched(&client, &format!("{base}?limit=1000{filter}"), limit.unwrap_or(usize::MAX), how.json).await;
    }
    let mut page = client.get(&format!("{base}?limit={}", limit.unwrap_or(EVENTS_DEFAULT))).await?;
    loop {
        let events = list(&page["events"]);
        events.iter().for_each(|event| tell(event, how.json));
        if !follow {
            return Ok(());
        }
        if events.is_empty() {
            tokio::time::sleep(FOLLOW_EVERY).await;
        }
        let seen = events.last().map_or(&page["last"], |event| &event["position"]).clone();
        page = client.get(&format!("{base}?after={seen}&limit=1000")).await?;
    }
}

async fn searched(client: &Client, url: &str, limit: usize, json: bool) -> anyhow::Result<()> {
    let (mut shown, mut after) = (0, String::new());
    loop {
        let page = client.get(&format!("{url}{after}")).await?;
        for event in list(&page["events"]) {
            tell(event, json);
            shown += 1;
            if shown == limit {
                return Ok(());
            }
        }
        match &page["next"] {
            Value::Null => return Ok(()),
            next => after = format!("&after={next}"),
        }
    }
}

fn tell(event: &Value, json: bool) {
    if json {
        println!("{event}");
        return;
    }
    let field = |key: &str| plain(&text(&event[key]));
    println!("{:>8}  {}  {:<8} {:<8} {}", field("position"), field("at"), field("origin"), field("kind"), field("summary"));
}

pub(super) async fn diff(arguments: DiffArguments) -> anyhow::Result<()> {
    let DiffArguments { phone, from, to, limit, how } = arguments;
    let client = Client::connect(&how.data.data)?;
    let url = format!("/api/phones/{}/diff?from={from}&to={to}&limit={limit}", segment(&phone));
    let answer = client.get(&url).await?;
    if how.json {
        return show(&answer);
    }
    for change in list(&answer["changes"]) {
        let field = |value: &Value| plain(&text(value));
        let size = |side: &Value| if side["kind"] == "file" { format!("{} bytes", side["size"]) } else { field(&side["kind"]) };
        let (path, before, after) = (field(&change["path"]), &change["before"], &change["after"]);
        match change["change"].as_str() {
            Some("added") => println!("+ {path}  {}", size(after)),
            Some("removed") => println!("- {path}  {}", size(before)),
            Some("moved") => println!("> {path}  from {}", field(&change["moved_from"])),
            _ if size(before) == size(after) => println!("* {path}  {}", size(after)),
            _ => println!("* {path}  {}, was {}", size(after), size(before)),
        }
    }
    if answer["more"] == true {
        eprintln!("there are more; --limit shows them");
    }
    Ok(())
}

pub(super) async fn find(arguments: FindArguments) -> anyhow::Result<()> {
    let FindArguments { pattern, at, contents, beneath, phones, limit, how } = arguments;
    let client = Client::connect(&how.data.data)?;
    let known = client.get("/api/phones").await?;
    let serials: Vec<String> = match phones.is_empty() {
        true => list(&known["phones"]).iter().map(|phone| text(&phone["id"])).collect(),
        false => phones,
    };
    let serial = |id: &str| {
        let phone = list(&known["phones"]).iter().find(|phone| phone["id"] == id);
        phone.map_or_else(|| id.to_owned(), |phone| plain(&text(&phone["serial"])))
    };
    let mut query = format!("pattern={}", crate::http::encode_path(pattern.as_bytes()));
    query += &contents.map_or_else(String::new, |contents| parameter("contents", contents.as_bytes()));
    query += &(parameter("beneath", beneath.as_os_str().as_bytes()) + &time_parameter("at", at)?);
    let watched = std::io::stderr().is_terminal();
    let (mut found, mut looked_at, mut unread) = (0, 0, 0);
    for (done, phone) in serials.iter().enumerate() {
        let (url, mut after) = (format!("/api/phones/{}/find?{query}", segment(phone)), String::new());
        loop {
            let step = client.get(&format!("{url}{after}&limit={}", (limit - found).min(1000))).await.with_context(|| serial(phone))?;
            for found in list(&step["matches"]) {
                tell_match(&serial(phone), found, &step["position"], how.json);
            }
            found += list(&step["matches"]).len();
            looked_at += step["looked_at"].as_u64().unwrap_or(0);
            unread += step["unread"].as_u64().unwrap_or(0);
            if watched {
                eprint!("\r{} of {} phones, {looked_at} files, {found} found ", done, serials.len());
            }
            if found >= limit {
                eprintln!("{found} found; --limit shows more");
                return Ok(());
            }
            match &step["next"] {
                Value::Null => break,
                next => after = format!("&after={}", text(next)),
            }
        }
    }
    if watched {
        eprintln!("\r{} phones, {looked_at} files, {found} found     ", serials.len());
    }
    if unread > 0 {
        eprintln!("{unread} files that fit by name were not read: too large, or damaged");
    }
    Ok(())
}

fn tell_match(serial: &str, found: &Value, position: &Value, json: bool) {
    if json {
        let mut found = found.clone();
        found["phone"] = serial.into();
        found["position"] = position.clone();
        println!("{found}");
        return;
    }
    let field = |key: &str| plain(&text(&found[key]));
    println!("{serial}@{position}  {}  {} bytes  {}", field("path"), field("size"), field("modified_at"));
    if !found["excerpt"].is_null() {
        println!("    at {}: {}", field("offset"), field("excerpt"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let read = |text: &str| moment(text).map(|time| time.format(&Rfc3339).expect("shown"));
        let noon = Ok("2026-11-27T12:00:00Z".to_owned());
        for text in ["2026-11-27T12:00", "2026-11-27 12:00:00", "2026-11-27T12:00:00Z"] {
            assert_eq!(read(text), noon);
        }
        assert_eq!(read("2026-11-27"), Ok("2026-11-27T00:00:00Z".to_owned()));
        assert_eq!(read("2026-11-27T13:00:00+01:00"), Ok("2026-11-27T13:00:00+01:00".to_owned()));
        assert!(read("yesterday").is_err() && read("2026-13-01").is_err());
    }
}
