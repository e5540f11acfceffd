//! The handset driven as its user drives it: by touch and keys, with its files read back.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use handset::bench_phone::{BenchPhone, MOMENT_S};
use handset::draw::font::{FOLDER, Fonts, PACKAGE};
use handset::draw::render::Renderer;
use handset::gallery;
use handset::ui::{Event, Key};
use rusqlite::Connection;
use tempfile::TempDir;

fn fonts(scale: i32) -> Rc<Fonts> {
    match Fonts::load(Path::new(FOLDER), scale) {
        Ok(fonts) => Rc::new(fonts),
        Err(error) => panic!("{error}: these tests need the Debian package {PACKAGE}"),
    }
}

fn phone(home: &TempDir) -> BenchPhone {
    BenchPhone::new(home.path(), fonts(1), 360, 720)
}

fn home() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn tap(phone: &mut BenchPhone, names: &str) {
    for name in names.split_ascii_whitespace() {
        assert!(
            phone.tap(name),
            "no target {name}; there are {:?}",
            names_of(phone)
        );
    }
}

fn names_of(phone: &BenchPhone) -> Vec<&str> {
    phone
        .shell
        .targets()
        .iter()
        .map(|target| target.name.as_str())
        .collect()
}

fn write(home: &TempDir, path: &str, content: impl AsRef<[u8]>) {
    let path = home.path().join(path);
    fs::create_dir_all(path.parent().expect("a folder")).expect("making folders");
    fs::write(path, content).expect("writing a file");
}

fn read(home: &TempDir, path: &str) -> String {
    fs::read_to_string(home.path().join(path)).expect(path)
}

fn rows(home: &TempDir, path: &str, query: &str) -> Vec<String> {
    let connection = Connection::open(home.path().join(path)).expect("opening the database");
    let mut statement = connection.prepare(query).expect(query);
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        let cells = (0..columns).map(|i| {
            Ok(match row.get::<_, rusqlite::types::Value>(i)? {
                rusqlite::types::Value::Null => "NULL".to_owned(),
                rusqlite::types::Value::Integer(value) => value.to_string(),
                rusqlite::types::Value::Text(value) => value,
                other => format!("{other:?}"),
            })
        });
        Ok(cells.collect::<rusqlite::Result<Vec<_>>>()?.join("|"))
    });
    rows.expect(query)
        .collect::<rusqlite::Result<_>>()
        .expect(query)
}

const CALLS: &str = ".local/share/calls/records.db";
const CHATTY: &str = ".purple/chatty/db/chatty-history.db";

#[test]
fn drawing_what_differs_gives_the_same_pixels_as_drawing_all() {
    for scale in [1, 2] {
        let home = home();
        let fresh_fonts = fonts(scale);
        let visit = |phone: &BenchPhone, stop: Option<&str>| {
            let (w, h) = (phone.renderer.canvas.w, phone.renderer.canvas.h);
            let mut fresh = Renderer::new(Rc::clone(&fresh_fonts), w, h);
            fresh.show(phone.shell.scene());
            assert!(
                fresh.canvas.pixels == phone.renderer.canvas.pixels,
                "{stop:?} at scale {scale}"
            );
            Ok(())
        };
        gallery::tour(home.path(), Path::new(FOLDER), scale, visit).expect("the tour");
    }
}

#[test]
fn everything_but_a_letter_key_is_large_enough_to_touch() {
    let home = home();
    let visit = |phone: &BenchPhone, _: Option<&str>| {
        for target in phone.shell.targets() {
            let (w, h) = (target.area.w, target.area.h);
            let cut_by_list = target.area.bottom() >= 460 && h < 44;
            let letter = target.name.starts_with("keyboard.key.");
            assert!(h >= 44 || cut_by_list, "{} is {w}x{h}", target.name);
            assert!(w >= 44 || letter, "{} is {w}x{h}", target.name);
        }
        Ok(())
    };
    gallery::tour(home.path(), Path::new(FOLDER), 1, visit).expect("the tour");
}

#[test]
fn equal_files_and_input_give_equal_pixels() {
    let homes = [home(), home()];
    let mut phones = homes.each_ref().map(phone);
    for phone in &mut phones {
        tap(phone, "home.notes notes.new");
        phone.type_text("Zürich\nв пять");
        tap(
            phone,
            "nav.home home.phone phone.key.1 phone.key.2 phone.call call.hangup phone.tab.recents",
        );
    }
    assert!(phones[0].renderer.canvas.pixels == phones[1].renderer.canvas.pixels);
}

#[test]
fn a_call_is_recorded_as_gnome_calls_does() {
    let home = home();
    let mut phone = phone(&home);
    tap(
        &mut phone,
        "home.phone phone.key.0 phone.key.1 phone.key.7 phone.key.# phone.erase phone.key.1 phone.call",
    );
    let stamp = "2026-11-23T09:41:00.250000Z";
    let columns = "SELECT id, target, inbound, start, answered, \"end\", protocol FROM calls";
    assert_eq!(
        rows(&home, CALLS, columns),
        [format!("1|0171|0|{stamp}|{stamp}|NULL|tel")]
    );
    tap(&mut phone, "call.hangup");
    assert_eq!(
        rows(&home, CALLS, columns),
        [format!("1|0171|0|{stamp}|{stamp}|{stamp}|tel")]
    );
    assert_eq!(
        rows(&home, CALLS, "SELECT version FROM _gom_version"),
        ["1", "2"]
    );
    let schema = rows(
        &home,
        CALLS,
        "SELECT name || ' ' || type FROM pragma_table_info('calls')",
    );
    let expected = [
        "id INTEGER",
        "target TEXT",
        "inbound INTEGER",
        "start BLOB",
        "answered BLOB",
        "end BLOB",
        "protocol TEXT",
    ];
    assert_eq!(schema, expected);
    tap(&mut phone, "phone.tab.recents phone.row.0");
    assert_eq!(rows(&home, CALLS, "SELECT count(*) FROM calls"), ["2"]);
    // Going home ends the call as well.
    tap(&mut phone, "nav.home");
    assert_eq!(
        rows(
            &home,
            CALLS,
            "SELECT count(*) FROM calls WHERE \"end\" IS NULL"
        ),
        ["0"]
    );
}

#[test]
fn a_log_of_the_first_schema_is_brought_up_to_date() {
    let home = home();
    fs::create_dir_all(home.path().join(".local/share/calls")).expect("making folders");
    let old = Connection::open(home.path().join(CALLS)).expect("opening the database");
    old.execute_batch(
        "CREATE TABLE _gom_version (version INTEGER); INSERT INTO _gom_version VALUES (1);
         CREATE TABLE 'calls' ('id' INTEGER PRIMARY KEY AUTOINCREMENT,'target' TEXT,'inbound' INTEGER,\
         'start' BLOB,'answered' BLOB,'end' BLOB);
         INSERT INTO calls VALUES (7,'+4930123456',1,'2026-11-22T08:00:00Z','1970-01-01T00:00:00Z','2026-11-22T08:01:00Z');",
    )
    .expect("the older schema");
    drop(old);
    let mut phone = phone(&home);
    tap(&mut phone, "home.phone phone.tab.recents");
    assert_eq!(
        phone.shell.store().calls().expect("calls")[0].answered,
        None
    );
    tap(&mut phone, "phone.row.0 call.hangup");
    assert_eq!(
        rows(&home, CALLS, "SELECT id, target, protocol FROM calls"),
        ["7|+4930123456|NULL", "8|+4930123456|tel"]
    );
}

#[test]
fn a_message_is_recorded_as_chatty_does() {
    let home = home();
    write(
        &home,
        ".local/share/contacts/anna.vcf",
        "BEGIN:VCARD\nVERSION:4.0\nFN:Anna Schmidt\nTEL;VALUE=uri:tel:+49-171-234567\nEND:VCARD\n",
    );
    let mut phone = phone(&home);
    tap(&mut phone, "home.messages messages.compose");
    phone.type_text("ann");
    tap(
        &mut phone,
        "compose.next keyboard.key.shift keyboard.key.H keyboard.key.i keyboard.key.space",
    );
    phone.type_text("Grüße!");
    tap(&mut phone, "conversation.send");
    phone.type_text("Привет\n");
    let messages = "SELECT t.name, u.username, m.body, m.body_type, m.direction, m.time, m.status, m.encrypted, m.uid \
                    FROM messages m JOIN threads t ON t.id = m.thread_id JOIN users u ON u.id = m.sender_id ORDER BY m.id";
    let expected = |body: &str| {
        format!(
            "+49171234567|invalid-0000000000000000|{body}|1|-1|{MOMENT_S}|3|0|07070707-0707-4707-8707-070707070707"
        )
    };
    assert_eq!(
        rows(&home, CHATTY, messages),
        [expected("Hi Grüße!"), expected("Привет")]
    );
    assert_eq!(rows(&home, CHATTY, "PRAGMA user_version"), ["4"]);
    let members =
        "SELECT u.username, u.alias, u.type FROM thread_members JOIN users u ON u.id = user_id";
    assert_eq!(
        rows(&home, CHATTY, members),
        ["+49171234567|Anna Schmidt|1"]
    );
    assert_eq!(rows(&home, CHATTY, "SELECT protocol FROM accounts"), ["1"]);
    tap(
        &mut phone,
        "nav.back messages.row.0 conversation.call call.hangup",
    );
    assert_eq!(
        rows(&home, CALLS, "SELECT target FROM calls"),
        ["+49171234567"]
    );
}

#[test]
fn a_note_is_saved_at_a_pause_and_when_left() {
    let home = home();
    let mut phone = phone(&home);
    tap(&mut phone, "home.notes notes.new");
    phone.type_text("Milk");
    assert!(phone.shell.unsaved());
    phone.shell.save();
    assert_eq!(read(&home, "Notes/Note 1.txt"), "Milk");
    tap(
        &mut phone,
        "keyboard.key.enter keyboard.key.e keyboard.key.backspace keyboard.key.language keyboard.key.ö nav.back",
    );
    assert_eq!(read(&home, "Notes/Note 1.txt"), "Milk\nö");
    tap(&mut phone, "notes.new");
    phone.send(Event::Key(Key::Home));
    assert!(
        !home.path().join("Notes/Note 2.txt").exists(),
        "an empty new note leaves no file"
    );
    tap(&mut phone, "home.notes notes.row.0 note.delete");
    assert!(!home.path().join("Notes/Note 1.txt").exists());
}

#[test]
fn a_change_from_outside_shows_but_does_not_take_typed_text() {
    let home = home();
    write(&home, "Notes/Note 1.txt", "before");
    let mut phone = phone(&home);
    tap(&mut phone, "home.notes notes.row.0");
    let shown = phone.renderer.canvas.pixels.clone();
    write(&home, "Notes/Note 1.txt", "after");
    phone.send(Event::Changed);
    assert!(phone.renderer.canvas.pixels != shown, "the new text shows");
    phone.type_text("!");
    write(&home, "Notes/Note 1.txt", "third");
    phone.send(Event::Changed);
    tap(&mut phone, "nav.back");
    assert_eq!(read(&home, "Notes/Note 1.txt"), "after!");
}

#[test]
fn mail_settings_keep_what_the_form_does_not_know() {
    let home = home();
    write(
        &home,
        ".config/pollux/mail.conf",
        "# ours\naddress=a@example.com\nserver=old.example.com\ncolour=blue\n",
    );
    let mut phone = phone(&home);
    tap(&mut phone, "home.mail mail.field.user_name");
    phone.type_text("anna");
    // Help-desk changes the server meanwhile.
    write(
        &home,
        ".config/pollux/mail.conf",
        "# ours\naddress=a@example.com\nserver=new.example.com\ncolour=blue\n",
    );
    phone.send(Event::Changed);
    tap(&mut phone, "nav.back mail.security.starttls mail.save");
    let saved = read(&home, ".config/pollux/mail.conf");
    let lines: Vec<&str> = saved.lines().collect();
    assert_eq!(
        lines[..4],
        [
            "# ours",
            "address=a@example.com",
            "server=new.example.com",
            "colour=blue"
        ]
    );
    assert!(
        lines.contains(&"user=anna") && lines.contains(&"security=starttls"),
        "{saved}"
    );
    tap(&mut phone, "home.mail mail.field.port");
    phone.type_text("99999");
    tap(&mut phone, "mail.save");
    assert_eq!(
        phone.shell.banner(),
        Some("The port is a number from 1 to 65535.")
    );
}

#[test]
fn contacts_keep_lines_and_cards_that_are_not_edited() {
    let home = home();
    let path = ".local/share/contacts/book.vcf";
    write(
        &home,
        path,
        "BEGIN:VCARD\r\nVERSION:4.0\r\nFN:Ben\r\nTEL:+1 555\r\nTEL;TYPE=work:+1 556\r\nNOTE:long\r\n  line\r\nEND:VCARD\r\n\
         BEGIN:VCARD\r\nVERSION:3.0\r\nN:Иванова;Ольга;;;\r\nEND:VCARD\r\n",
    );
    let mut phone = phone(&home);
    tap(
        &mut phone,
        "home.contacts contacts.row.0 contact.edit contact_form.field.email",
    );
    phone.type_text("ben@example.com");
    tap(&mut phone, "contact_form.save");
    assert_eq!(
        read(&home, path),
        "BEGIN:VCARD\r\nVERSION:4.0\r\nFN:Ben\r\nTEL:+1 555\r\nTEL;TYPE=work:+1 556\r\nNOTE:long line\r\n\
         N:;Ben;;;\r\nEMAIL;TYPE=INTERNET:ben@example.com\r\nEND:VCARD\r\n\
         BEGIN:VCARD\r\nVERSION:3.0\r\nN:Иванова;Ольга;;;\r\nEND:VCARD\r\n"
    );
    assert_eq!(
        phone.shell.store().contacts().expect("contacts")[1].name,
        "Ольга Иванова"
    );
    tap(&mut phone, "nav.back contacts.new");
    phone.type_text("Zoë, Ltd.\t+44 20");
    tap(&mut phone, "contact_form.save");
    let new = read(&home, ".local/share/contacts/zoë-ltd.vcf");
    assert_eq!(
        new,
        "BEGIN:VCARD\r\nVERSION:3.0\r\nFN:Zoë\\, Ltd.\r\nN:Ltd.;Zoë\\,;;;\r\nTEL;TYPE=CELL:+44 20\r\nEND:VCARD\r\n"
    );
}

#[test]
fn a_damaged_database_is_told_kept_aside_and_replaced() {
    let home = home();
    write(
        &home,
        CALLS,
        "this is no database, but longer than its header would be, for sure".repeat(40),
    );
    let mut phone = phone(&home);
    tap(&mut phone, "home.phone");
    assert_eq!(phone.shell.banner(), Some("The call log is damaged."));
    tap(&mut phone, "phone.key.5 phone.call");
    let told = "The call log was damaged. A copy is kept as records.db.damaged-1.";
    assert_eq!(phone.shell.banner(), Some(told));
    tap(&mut phone, "call.hangup banner.ok");
    assert_eq!(phone.shell.banner(), None);
    assert!(read(&home, &format!("{CALLS}.damaged-1")).starts_with("this is no database"));
    assert_eq!(rows(&home, CALLS, "SELECT target FROM calls"), ["5"]);
}

#[test]
fn a_full_disk_is_told_and_the_text_waits() {
    let home = home();
    write(&home, "Notes/Note 1.txt", "safe");
    // Writing there fails as on a full disk.
    std::os::unix::fs::symlink("/dev/full", home.path().join("Notes/.Note 1.txt.new"))
        .expect("linking");
    let mut phone = phone(&home);
    tap(&mut phone, "home.notes notes.row.0");
    phone.type_text(" and sound");
    phone.shell.save();
    assert_eq!(
        phone.shell.banner(),
        Some("Storage full. Could not save note.")
    );
    std::os::unix::fs::symlink("/dev/full", home.path().join("Notes/.Note 1.txt.new"))
        .expect("linking");
    tap(&mut phone, "nav.home");
    assert_eq!(read(&home, "Notes/Note 1.txt"), "safe");
    // There is space again: the text is still there, and is saved.
    tap(&mut phone, "home.notes");
    assert!(phone.find("note.delete").is_some(), "the note is back");
    phone.shell.save();
    assert_eq!(read(&home, "Notes/Note 1.txt"), "safe and sound");
    assert!(!phone.shell.unsaved());
}

#[test]
fn names_that_are_not_utf8_are_shown_and_opened() {
    let home = home();
    let folder = home.path().join("Documents");
    fs::create_dir_all(&folder).expect("making a folder");
    fs::write(
        folder.join(OsStr::from_bytes(b"caf\xe9\n.txt")),
        b"caf\xe9 text",
    )
    .expect("writing a file");
    let mut phone = phone(&home);
    tap(&mut phone, "home.files files.row.0 files.row.0");
    assert!(phone.find("viewer.back").is_some());
    assert_eq!(phone.shell.banner(), None);
}

#[test]
fn a_list_follows_the_finger_and_only_a_touch_at_rest_acts() {
    let home = home();
    for number in 1..=30 {
        write(
            &home,
            &format!("Notes/Note {number}.txt"),
            format!("Note number {number}"),
        );
    }
    let mut phone = phone(&home);
    tap(&mut phone, "home.notes");
    assert_eq!(
        phone.find("notes.row.0").map(|target| target.area.y),
        Some(96)
    );
    phone.drag((100, 500), (100, 300));
    assert!(phone.find("note.delete").is_none(), "a drag opens nothing");
    assert_eq!(
        phone.find("notes.row.3").map(|target| target.area.y),
        Some(96 + 3 * 94 - 200)
    );
    phone.drag((100, 300), (100, 900));
    assert_eq!(
        phone.find("notes.row.0").map(|target| target.area.y),
        Some(96)
    );
    phone.drag((180, 700), (180, 500));
    assert!(
        phone.find("home.phone").is_some(),
        "a swipe up from the bottom goes home"
    );
}

#[test]
fn a_touch_in_a_field_puts_the_cursor_there() {
    let home = home();
    let mut phone = phone(&home);
    tap(&mut phone, "home.wifi wifi.field.network");
    phone.type_text("Ofice");
    // Between "O" and "f": the text begins 14 dp into the field.
    let area = phone.find("wifi.field.network").expect("the field").area;
    phone.send(Event::Down {
        x: area.x + 14 + 12,
        y: area.y + 30,
    });
    phone.send(Event::Up);
    phone.type_text("f");
    tap(&mut phone, "wifi.field.password");
    phone.type_text("pass word ");
    tap(&mut phone, "wifi.save");
    assert_eq!(
        read(&home, ".config/pollux/wifi.conf"),
        "network=Office\nsecurity=wpa2\npassword=pass word \n"
    );
}
