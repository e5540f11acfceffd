use std::time::Duration;

use super::*;
use crate::layout::RAM_BASE;
use crate::virtio::Transport;
use crate::virtio::fake_driver::{FakeDriver, Part, RAM_BYTES};

const WIDTH: u32 = 36;
const HEIGHT: u32 = 72;
const WHOLE: [u32; 4] = [0, 0, WIDTH, HEIGHT];
const OK: u32 = 0x1100;

fn started() -> (FakeDriver<Gpu>, Screen) {
    let gpu = Gpu::new(WIDTH, HEIGHT).unwrap();
    let screen = gpu.screen();
    (FakeDriver::started(gpu), screen)
}

fn command(kind: u32, words: &[u32]) -> Vec<u8> {
    let header = [kind, 0, 0, 0, 0, 0];
    header.iter().chain(words).flat_map(|w| w.to_le_bytes()).collect()
}

fn respond(driver: &mut FakeDriver<Gpu>, kind: u32, words: &[u32]) -> Vec<u8> {
    let command = command(kind, words);
    driver.transact(0, &[Part::Out(&command), Part::In(1200)])
}

fn ask(driver: &mut FakeDriver<Gpu>, kind: u32, words: &[u32]) -> u32 {
    u32::from_le_bytes(respond(driver, kind, words)[..4].try_into().unwrap())
}

fn with(rect: [u32; 4], words: &[u32]) -> Vec<u32> {
    rect.iter().chain(words).copied().collect()
}

fn create(driver: &mut FakeDriver<Gpu>, id: u32, format: u32) -> u32 {
    ask(driver, 0x101, &[id, format, WIDTH, HEIGHT])
}

/// A resource backed by two separate pieces of guest memory, which it returns.
fn backed(driver: &mut FakeDriver<Gpu>, id: u32) -> [u64; 2] {
    assert_eq!(create(driver, id, 2), OK);
    let first_len = 4096;
    let rest_len = WIDTH * HEIGHT * 4 - first_len;
    let pieces = [driver.allocate(u64::from(first_len)), driver.allocate(u64::from(rest_len))];
    let entry = |address: u64, len| [address as u32, (address >> 32) as u32, len, 0];
    let entries = [entry(pieces[0], first_len), entry(pieces[1], rest_len)].concat();
    assert_eq!(ask(driver, 0x106, &[&[id, 2], entries.as_slice()].concat()), OK);
    pieces
}

fn draw_row(driver: &FakeDriver<Gpu>, address: u64, colour: u32) {
    driver.write_ram(address, &colour.to_le_bytes().repeat(WIDTH as usize));
}

fn transfer(driver: &mut FakeDriver<Gpu>, rect: [u32; 4], offset: u32, id: u32) -> u32 {
    ask(driver, 0x105, &with(rect, &[offset, 0, id, 0]))
}

fn flush(driver: &mut FakeDriver<Gpu>, rect: [u32; 4], id: u32) -> u32 {
    ask(driver, 0x104, &with(rect, &[id, 0]))
}

fn set_scanout(driver: &mut FakeDriver<Gpu>, rect: [u32; 4], id: u32) -> u32 {
    ask(driver, 0x103, &with(rect, &[0, id]))
}

fn pixel(screen: &Screen, x: u32, y: u32) -> u32 {
    screen.look(|f| f.pixels()[(y * f.width() + x) as usize])
}

fn generation(screen: &Screen) -> u64 {
    screen.look(Frame::generation)
}

#[test]
fn tells_its_display() {
    let (mut driver, _) = started();
    assert_eq!(driver.config(8, 8), [1, 0, 0, 0, 0, 0, 0, 0]);
    let info = respond(&mut driver, 0x100, &[]);
    assert_eq!(info.len(), 24 + 16 * 24);
    assert_eq!(info[24 + 8..24 + 20], [WIDTH, HEIGHT, 1].map(u32::to_le_bytes).concat());
}

#[test]
fn describes_itself_by_edid() {
    let (mut driver, _) = started();
    assert_ne!(driver.device_features() & F_EDID, 0);
    let reply = respond(&mut driver, 0x10a, &[0, 0]);
    assert_eq!(reply.len(), 24 + 8 + 1024);
    assert_eq!(reply[24..28], 128u32.to_le_bytes());
    let edid = &reply[32..160];
    assert_eq!(edid.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
    assert_eq!((edid[56], edid[59]), (36, 72));
    assert_eq!(ask(&mut driver, 0x10a, &[1, 0]), 0x1202);
}

#[test]
fn shows_what_was_transferred_and_flushed() {
    let (mut driver, screen) = started();
    let [first, second] = backed(&mut driver, 5);
    assert_eq!(set_scanout(&mut driver, WHOLE, 5), OK);
    draw_row(&driver, first, 0xff11_2233);
    // Row 28 begins in the first piece and ends in the second.
    let row_28 = 28 * WIDTH * 4;
    driver.write_ram(first + u64::from(row_28), &[0xaa; 64]);
    driver.write_ram(second, &[0xbb; 80]);
    assert_eq!(transfer(&mut driver, WHOLE, 0, 5), OK);
    assert_eq!(generation(&screen), 0, "nothing is shown before the flush");
    assert_eq!(flush(&mut driver, WHOLE, 5), OK);
    assert_eq!(pixel(&screen, 0, 0), 0x0011_2233);
    assert_eq!((pixel(&screen, 15, 28), pixel(&screen, 16, 28)), (0x00aa_aaaa, 0x00bb_bbbb));
    assert_eq!(screen.look(|f| f.damage_since(0)), [Rect { x: 0, y: 0, width: WIDTH, height: 29 }]);
}

#[test]
fn damage_is_what_differs_since_a_generation() {
    let (mut driver, screen) = started();
    let [first, _] = backed(&mut driver, 1);
    set_scanout(&mut driver, WHOLE, 1);
    let before = generation(&screen);
    draw_row(&driver, first + u64::from(3 * WIDTH * 4), 0x77);
    transfer(&mut driver, [0, 3, WIDTH, 1], 3 * WIDTH * 4, 1);
    flush(&mut driver, [2, 0, 4, 10], 1);
    assert_eq!(screen.look(|f| f.damage_since(before)), [Rect { x: 2, y: 3, width: 4, height: 1 }]);
    assert_eq!((pixel(&screen, 1, 3), pixel(&screen, 2, 3), pixel(&screen, 6, 3)), (0, 0x77, 0));
    let after = generation(&screen);
    flush(&mut driver, [2, 0, 4, 10], 1);
    assert_eq!(generation(&screen), after, "nothing differs");
    assert_eq!(screen.look(|f| f.damage_since(after)), []);
    for colour in 0..200 {
        draw_row(&driver, first, colour + 1);
        transfer(&mut driver, [0, 0, WIDTH, 1], 0, 1);
        flush(&mut driver, WHOLE, 1);
    }
    let whole = Rect { x: 0, y: 0, width: WIDTH, height: HEIGHT };
    assert_eq!(screen.look(|f| f.damage_since(after)), [whole], "too long ago");
    assert_eq!(screen.look(|f| f.damage_since(f.generation() - 64)).len(), 64);
}

#[test]
fn a_new_scanout_is_shown_at_once_and_sizes_the_screen() {
    let (mut driver, screen) = started();
    let [first, _] = backed(&mut driver, 1);
    draw_row(&driver, first + u64::from(2 * WIDTH * 4), 0x42);
    transfer(&mut driver, WHOLE, 0, 1);
    assert_eq!(set_scanout(&mut driver, [4, 2, 10, 20], 1), OK);
    assert_eq!(screen.look(|f| (f.width(), f.height(), f.pixels()[0])), (10, 20, 0x42));
    set_scanout(&mut driver, WHOLE, 1);
    assert_eq!(pixel(&screen, 35, 2), 0x42);
    assert_eq!(set_scanout(&mut driver, [0; 4], 0), OK);
    assert_eq!(pixel(&screen, 35, 2), 0);
}

#[test]
fn every_format_becomes_the_same_colour() {
    let formats: [(u32, [u8; 4]); 8] = [
        (1, [3, 2, 1, 9]),
        (2, [3, 2, 1, 9]),
        (3, [9, 1, 2, 3]),
        (4, [9, 1, 2, 3]),
        (67, [1, 2, 3, 9]),
        (68, [9, 3, 2, 1]),
        (121, [9, 3, 2, 1]),
        (134, [1, 2, 3, 9]),
    ];
    for (format, bytes) in formats {
        let (mut driver, screen) = started();
        assert_eq!(ask(&mut driver, 0x101, &[1, format, 1, 1]), OK);
        let address = driver.allocate(4);
        driver.write_ram(address, &bytes);
        ask(&mut driver, 0x106, &[1, 1, address as u32, 0, 4, 0]);
        transfer(&mut driver, [0, 0, 1, 1], 0, 1);
        assert_eq!(set_scanout(&mut driver, [0, 0, 1, 1], 1), OK);
        assert_eq!(pixel(&screen, 0, 0), 0x0001_0203, "format {format}");
    }
}

#[test]
fn a_fence_comes_back() {
    let (mut driver, _) = started();
    let mut command = command(0x100, &[]);
    command[4] = 1;
    command[8..16].copy_from_slice(&77u64.to_le_bytes());
    command[16] = 3;
    let reply = driver.transact(0, &[Part::Out(&command), Part::In(24)]);
    assert_eq!(reply.len(), 24, "a response is cut to its buffer");
    assert_eq!((reply[4], reply[8], reply[16]), (1, 77, 3));
}

#[test]
fn the_cursor_queue_is_served() {
    let (mut driver, _) = started();
    assert_eq!(driver.transact(1, &[Part::Out(&command(0x300, &[0; 8]))]), b"");
}

#[test]
fn absurd_sizes_are_refused() {
    let (mut driver, _) = started();
    for (width, height) in [(u32::MAX, u32::MAX), (1 << 16, 1 << 16), (4096, 2049), (u32::MAX, 1)] {
        assert_eq!(ask(&mut driver, 0x101, &[1, 2, width, height]), 0x1201);
    }
    for (width, height) in [(0, 1), (1, 0)] {
        assert_eq!(ask(&mut driver, 0x101, &[1, 2, width, height]), 0x1205);
    }
    assert_eq!(ask(&mut driver, 0x101, &[1, 99, 1, 1]), 0x1205, "no such format");
    for id in 1..=4 {
        assert_eq!(ask(&mut driver, 0x101, &[id, 2, 4096, 2048]), OK);
    }
    assert_eq!(ask(&mut driver, 0x101, &[5, 2, 1, 1]), 0x1201, "all pixels are taken");
    assert!(Gpu::new(0, 1).is_err() && Gpu::new(1, 4097).is_err() && Gpu::new(4096, 4096).is_err());
}

#[test]
fn resources_are_bounded_in_number() {
    let (mut driver, _) = started();
    let accepted = (1..1000).take_while(|id| ask(&mut driver, 0x101, &[*id, 2, 1, 1]) == OK).count();
    assert_eq!(accepted, RESOURCES_MAX);
    assert_eq!(ask(&mut driver, 0x102, &[7, 0]), OK);
    assert_eq!(ask(&mut driver, 0x101, &[7, 2, 1, 1]), OK);
}

#[test]
fn nothing_outside_a_resource_or_ram_is_touched() {
    let (mut driver, screen) = started();
    backed(&mut driver, 1);
    for rect in [[1, 0, WIDTH, 1], [0, HEIGHT, 1, 1], [u32::MAX, 0, 2, 1], [0, 0, 0, 1], [0, 0, u32::MAX, u32::MAX]] {
        assert_eq!(transfer(&mut driver, rect, 0, 1), 0x1205);
        assert_eq!(flush(&mut driver, rect, 1), 0x1205);
        assert_eq!(set_scanout(&mut driver, rect, 1), 0x1205);
    }
    assert_eq!(transfer(&mut driver, WHOLE, 4, 1), 0x1205, "the last row ends behind the backing");
    assert_eq!(ask(&mut driver, 0x105, &with(WHOLE, &[u32::MAX, u32::MAX, 1, 0])), 0x1205);
    let end = RAM_BASE + RAM_BYTES;
    for (address, len) in [(0u64, 16u32), (end - 8, 16), (u64::MAX - 8, 16), (RAM_BASE, 0), (RAM_BASE, u32::MAX)] {
        let entry = [1, 1, address as u32, (address >> 32) as u32, len, 0];
        assert_eq!(ask(&mut driver, 0x106, &entry), 0x1205);
    }
    assert_eq!(generation(&screen), 0);
}

#[test]
fn what_does_not_exist_is_refused() {
    let (mut driver, _) = started();
    for (kind, words) in [(0x102, vec![9, 0]), (0x104, with(WHOLE, &[9, 0])), (0x105, with(WHOLE, &[0, 0, 9, 0]))] {
        assert_eq!(ask(&mut driver, kind, &words), 0x1203);
    }
    assert_eq!(ask(&mut driver, 0x107, &[9, 0]), 0x1203);
    assert_eq!(set_scanout(&mut driver, WHOLE, 9), 0x1203);
    assert_eq!(ask(&mut driver, 0x103, &with(WHOLE, &[1, 1])), 0x1202);
    assert_eq!(create(&mut driver, 0, 2), 0x1203);
    assert_eq!(create(&mut driver, 1, 2), OK);
    assert_eq!(create(&mut driver, 1, 2), 0x1203);
    assert_eq!(transfer(&mut driver, WHOLE, 0, 1), 0x1205, "no backing");
    for kind in [0, 0x108, 0x109, 0x110, 0x200, u32::MAX] {
        assert_eq!(ask(&mut driver, kind, &[]), 0x1200);
    }
    assert!(!driver.needs_reset());
}

#[test]
fn truncated_requests_are_refused() {
    let (mut driver, _) = started();
    for kind in 0x101..0x108 {
        assert_eq!(ask(&mut driver, kind, &[1]), 0x1200);
    }
    create(&mut driver, 1, 2);
    assert_eq!(ask(&mut driver, 0x106, &[1, 2, 0, 0, 0, 0]), 0x1200, "fewer entries than announced");
    assert_eq!(ask(&mut driver, 0x106, &[1, u32::MAX, 0, 0, 0, 0]), 0x1200);
    driver.send(0, &[Part::Out(&[0; 23]), Part::In(24)]);
    assert!(driver.needs_reset());
}

#[test]
fn waiting_ends_with_a_change_or_in_time() {
    let (mut driver, screen) = started();
    assert_eq!(screen.wait_beyond(0, Duration::ZERO), 0);
    let [first, _] = backed(&mut driver, 1);
    set_scanout(&mut driver, WHOLE, 1);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| screen.wait_beyond(0, Duration::from_secs(20)));
        draw_row(&driver, first, 1);
        transfer(&mut driver, WHOLE, 0, 1);
        flush(&mut driver, WHOLE, 1);
        assert_eq!(waiter.join().unwrap(), 1);
    });
}

#[test]
fn moves_with_its_screen_and_resources() {
    let (mut driver, _) = started();
    let [first, _] = backed(&mut driver, 3);
    set_scanout(&mut driver, WHOLE, 3);
    draw_row(&driver, first, 0x12_3456);
    transfer(&mut driver, WHOLE, 0, 3);
    flush(&mut driver, WHOLE, 3);
    draw_row(&driver, first, 0x65_4321);
    transfer(&mut driver, WHOLE, 0, 3);
    let state = driver.transport.save();
    let mut cut = FakeDriver::on(driver.ram(), Gpu::new(1, 1).unwrap());
    assert!(cut.transport.restore(&state[..state.len() - 4]).is_err());
    let gpu = Gpu::new(WIDTH, HEIGHT).unwrap();
    let screen_there = gpu.screen();
    let mut there = driver.moved_to(gpu);
    assert_eq!(pixel(&screen_there, 0, 0), 0x12_3456, "what was not flushed is not shown");
    assert_eq!(flush(&mut there, WHOLE, 3), OK);
    assert_eq!(pixel(&screen_there, 0, 0), 0x65_4321);
}

#[test]
fn a_reset_forgets_everything() {
    let (mut driver, screen) = started();
    let [first, _] = backed(&mut driver, 1);
    draw_row(&driver, first, 0xff);
    transfer(&mut driver, WHOLE, 0, 1);
    set_scanout(&mut driver, WHOLE, 1);
    assert_eq!(pixel(&screen, 0, 0), 0xff);
    driver.start(u64::MAX);
    assert_eq!(pixel(&screen, 0, 0), 0);
    assert_eq!(create(&mut driver, 1, 2), OK);
}

#[test]
fn a_screen_of_absurd_size_is_refused() {
    let (mut driver, screen) = started();
    // As many pixels as a resource may have, in one row.
    assert_eq!(ask(&mut driver, 0x101, &[9, 2, RESOURCE_PIXELS_MAX, 1]), OK);
    assert_eq!(set_scanout(&mut driver, [0, 0, SCREEN_SIDE_MAX + 1, 1], 9), 0x1205);
    assert_eq!(screen.look(|frame| (frame.width(), frame.height())), (WIDTH, HEIGHT));
    assert_eq!(set_scanout(&mut driver, [0, 0, SCREEN_SIDE_MAX, 1], 9), OK);
    assert_eq!(screen.look(|frame| (frame.width(), frame.height())), (SCREEN_SIDE_MAX, 1));
    assert!(Gpu::new(SCREEN_SIDE_MAX, SCREEN_SIDE_MAX).is_err());
}

#[test]
fn a_saved_screen_must_be_as_large_as_what_it_shows() {
    let (mut driver, _) = started();
    backed(&mut driver, 3);
    set_scanout(&mut driver, WHOLE, 3);
    let state = driver.transport.save();
    let restored = |screen: &str, pixels: usize| {
        let (json, blob) = state[4..].split_at(u32::from_le_bytes(state[..4].try_into().unwrap()) as usize);
        let json = String::from_utf8(json.to_vec()).unwrap().replace("\"screen\":[36,72]", &format!("\"screen\":{screen}"));
        let of_resource = &blob[..(WIDTH * HEIGHT * 4) as usize];
        let state = [&(json.len() as u32).to_le_bytes()[..], json.as_bytes(), of_resource, &vec![0; pixels * 4]].concat();
        FakeDriver::on(driver.ram(), Gpu::new(WIDTH, HEIGHT).unwrap()).transport.restore(&state)
    };
    restored("[36,72]", 36 * 72).unwrap();
    for (screen, pixels) in [("[1,1]", 1), ("[72,36]", 36 * 72), ("[0,72]", 0), ("[5000,1]", 5000)] {
        assert!(restored(screen, pixels).is_err(), "{screen}");
    }
}

#[test]
fn backing_entries_are_bounded_in_number() {
    let (mut driver, _) = started();
    let attach = |driver: &mut FakeDriver<Gpu>, id: u32, count: u32| {
        let entries = [RAM_BASE as u32, 0, 4, 0].repeat(count as usize);
        ask(driver, 0x106, &[&[id, count], entries.as_slice()].concat())
    };
    let resources = ENTRIES_MAX as u32 / BACKING_ENTRIES_MAX;
    (1..=resources + 1).for_each(|id| assert_eq!(create(&mut driver, id, 2), OK));
    assert_eq!(attach(&mut driver, 1, BACKING_ENTRIES_MAX + 1), 0x1200);
    (1..=resources).for_each(|id| assert_eq!(attach(&mut driver, id, BACKING_ENTRIES_MAX), OK));
    assert_eq!(attach(&mut driver, resources + 1, 1), 0x1201);
}

#[test]
fn damage_is_bounded_in_number() {
    let (mut driver, screen) = started();
    let [first, _] = backed(&mut driver, 1);
    set_scanout(&mut driver, WHOLE, 1);
    for colour in 1..=1000 {
        draw_row(&driver, first, colour);
        transfer(&mut driver, WHOLE, 0, 1);
        flush(&mut driver, [0, 0, WIDTH, 1], 1);
    }
    assert_eq!(screen.look(|frame| frame.damage_since(frame.generation() - 10)).len(), 10);
    let whole = Rect { x: 0, y: 0, width: WIDTH, height: HEIGHT };
    assert_eq!(screen.look(|frame| frame.damage_since(1)), [whole]);
}
