//! Messages, as Chatty keeps them: `chatty-history.db`, schema version 4.
//!
//! Text messages belong to the account of the placeholder user `invalid-0000000000000000`, as
//! Chatty's do while it has no number of its own. A thread is named by the other side's number.
//! Times are Unix seconds; direction is -1 out, 0 system, 1 in.

use rusqlite::{Connection, OptionalExtension, params};

use super::database::{self, Database};
use super::{Result, Store, StoreError, normal_number};

pub const FOLDER: &str = ".purple/chatty/db";
pub const FILE: &str = "chatty-history.db";

const SCHEMA: &str = include_str!("chatty.sql");
const MM_NUMBER: &str = "invalid-0000000000000000";
const ID_PHONE: i64 = 1;
const PROTOCOL_MMS_SMS: i64 = 1;
const THREAD_DIRECT_CHAT: i64 = 0;
const VISIBILITY_HIDDEN: i64 = 1;
const MESSAGE_TYPE_TEXT: i64 = 1;
const DIRECTION_OUT: i64 = -1;
const STATUS_DRAFT: i64 = 1;
const STATUS_SENT: i64 = 3;

/// Threads and messages shown; older ones stay in the file.
const THREADS_MAX: i64 = 200;
const MESSAGES_MAX: i64 = 200;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    pub id: i64,
    /// The other side's number.
    pub name: String,
    pub alias: Option<String>,
    pub last: String,
    pub last_out: bool,
    /// Unix seconds.
    pub time: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub id: i64,
    pub body: String,
    pub outgoing: bool,
    /// Unix seconds.
    pub time: i64,
}

impl Store {
    /// Threads with at least one message, latest first.
    pub fn threads(&self) -> Result<Vec<Thread>> {
        self.chatty_database().read(|connection| {
            let mut statement = connection.prepare(
                "SELECT threads.id, threads.name, threads.alias, messages.body, messages.direction, messages.time \
                 FROM threads JOIN messages ON messages.id = (SELECT m.id FROM messages m \
                   WHERE m.thread_id = threads.id AND m.status IS NOT ?1 ORDER BY m.time DESC, m.id DESC LIMIT 1) \
                 WHERE threads.visibility != ?2 ORDER BY messages.time DESC, messages.id DESC LIMIT ?3",
            )?;
            let rows = statement.query_map([STATUS_DRAFT, VISIBILITY_HIDDEN, THREADS_MAX], |row| {
                Ok(Thread {
                    id: row.get(0)?,
                    name: row.get(1)?,
                    alias: row.get(2)?,
                    last: row.get(3)?,
                    last_out: row.get::<_, i64>(4)? == DIRECTION_OUT,
                    time: row.get(5)?,
                })
            })?;
            rows.collect()
        })
    }

    /// The latest messages exchanged with a number, oldest first.
    pub fn messages(&self, number: &str) -> Result<Vec<Message>> {
        let number = normal_number(number);
        self.chatty_database().read(|connection| {
            let mut statement = connection.prepare(
                "SELECT messages.id, body, direction, time FROM messages \
                 JOIN threads ON threads.id = messages.thread_id \
                 WHERE threads.name = ?1 AND status IS NOT ?2 ORDER BY time DESC, messages.id DESC LIMIT ?3",
            )?;
            let rows = statement.query_map(params![number, STATUS_DRAFT, MESSAGES_MAX], |row| {
                Ok(Message {
                    id: row.get(0)?,
                    body: row.get(1)?,
                    outgoing: row.get::<_, i64>(2)? == DIRECTION_OUT,
                    time: row.get(3)?,
                })
            })?;
            let mut messages: Vec<Message> = rows.collect::<rusqlite::Result<_>>()?;
            messages.reverse();
            Ok(messages)
        })
    }

    /// Records a sent text message; `name` is what the contacts call the number.
    pub fn send_message(
        &self,
        number: &str,
        name: Option<&str>,
        body: &str,
    ) -> Result<Option<StoreError>> {
        let (number, uid) = (normal_number(number), uuid((self.sources.random)()));
        let time = self.now_us().div_euclid(1_000_000);
        let ((), replaced) = self.chatty_database().write(|connection| {
            let own = user(connection, MM_NUMBER, None)?;
            connection.execute(
                "INSERT OR IGNORE INTO accounts(user_id,protocol) VALUES(?1,?2)",
                [own, PROTOCOL_MMS_SMS],
            )?;
            let account: i64 = connection.query_row(
                "SELECT id FROM accounts WHERE user_id=?1 AND protocol=?2",
                [own, PROTOCOL_MMS_SMS],
                |row| row.get(0),
            )?;
            connection.execute(
                "INSERT INTO threads(name,account_id,type,visibility,encrypted) VALUES(?1,?2,?3,0,0) \
                 ON CONFLICT(name,account_id,type) DO UPDATE SET visibility=0, encrypted=0",
                params![number, account, THREAD_DIRECT_CHAT],
            )?;
            let thread: i64 = connection.query_row(
                "SELECT id FROM threads WHERE name=?1 AND account_id=?2 AND type=?3",
                params![number, account, THREAD_DIRECT_CHAT],
                |row| row.get(0),
            )?;
            let other = user(connection, &number, Some(name.unwrap_or(&number)))?;
            connection.execute(
                "INSERT OR IGNORE INTO thread_members(thread_id,user_id) VALUES(?1,?2)",
                [thread, other],
            )?;
            connection.execute(
                "INSERT INTO messages(uid,thread_id,sender_id,body,body_type,direction,time,encrypted,status) \
                 VALUES(?1,?2,?3,?4,?5,?6,?7,0,?8) \
                 ON CONFLICT (uid,thread_id,body,time) DO UPDATE SET status=?8",
                params![uid, thread, own, body, MESSAGE_TYPE_TEXT, DIRECTION_OUT, time, STATUS_SENT],
            )?;
            Ok(())
        })?;
        Ok(replaced)
    }

    fn chatty_database(&self) -> Database {
        Database {
            path: database::at(&self.home, FOLDER, FILE),
            what: "message history",
            prepare,
        }
    }
}

/// The id of a phone user, made if missing.
fn user(connection: &Connection, username: &str, alias: Option<&str>) -> rusqlite::Result<i64> {
    let find = "SELECT id FROM users WHERE username=?1 AND type=?2";
    let found = connection
        .query_row(find, params![username, ID_PHONE], |row| row.get(0))
        .optional()?;
    if let Some(id) = found {
        return Ok(id);
    }
    connection.execute(
        "INSERT OR IGNORE INTO users(username,alias,type) VALUES(?1,?2,?3)",
        params![username, alias, ID_PHONE],
    )?;
    Ok(connection.last_insert_rowid())
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    if !database::columns(connection, "threads")?.is_empty() {
        return Ok(());
    }
    connection.execute_batch(SCHEMA)
}

/// A version 4 UUID in text, as `g_uuid_string_random` gives.
fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}
