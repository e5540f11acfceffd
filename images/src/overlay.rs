//! What we put into the base tree beside Debian's packages: configuration, folders, links, and our own programs.
//!
//! Modes and owners stand here, because version control keeps neither.

use crate::tree::{Entry, Tree};

/// The phone's one user; what the handset makes is theirs.
pub(crate) const USER_ID: u32 = 1000;

/// Path, mode, contents.
pub(crate) const FILES: &[(&str, u32, &[u8])] = &[
    ("etc/fstab", 0o644, include_bytes!("../overlay/etc/fstab")),
    ("etc/group", 0o644, include_bytes!("../overlay/etc/group")),
    (
        "etc/hostname",
        0o644,
        include_bytes!("../overlay/etc/hostname"),
    ),
    ("etc/hosts", 0o644, include_bytes!("../overlay/etc/hosts")),
    (
        "etc/init.d/agent",
        0o755,
        include_bytes!("../overlay/etc/init.d/agent"),
    ),
    (
        "etc/init.d/background",
        0o755,
        include_bytes!("../overlay/etc/init.d/background"),
    ),
    (
        "etc/init.d/devices",
        0o755,
        include_bytes!("../overlay/etc/init.d/devices"),
    ),
    (
        "etc/init.d/shell",
        0o755,
        include_bytes!("../overlay/etc/init.d/shell"),
    ),
    (
        "etc/inittab",
        0o644,
        include_bytes!("../overlay/etc/inittab"),
    ),
    // Each machine that has one puts its own over it.
    ("etc/machine-id", 0o444, b""),
    (
        "etc/nsswitch.conf",
        0o644,
        include_bytes!("../overlay/etc/nsswitch.conf"),
    ),
    (
        "etc/os-release",
        0o644,
        include_bytes!("../overlay/etc/os-release"),
    ),
    ("etc/passwd", 0o644, include_bytes!("../overlay/etc/passwd")),
    (
        "etc/profile",
        0o644,
        include_bytes!("../overlay/etc/profile"),
    ),
    ("etc/shadow", 0o600, include_bytes!("../overlay/etc/shadow")),
    (
        "etc/udhcpc.script",
        0o755,
        include_bytes!("../overlay/etc/udhcpc.script"),
    ),
];

/// Mount points and homes; what is not named is made as a parent, mode 755.
const FOLDERS: &[(&str, u32)] = &[
    ("boot", 0o755),
    ("dev", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("usr/lib", 0o755),
    ("var/lib/pollux-agent", 0o700),
];

/// The user's folders exist from the beginning, so that the first call or message only adds a file.
const USER_FOLDERS: &[&str] = &[
    "home/user",
    "home/user/.config",
    "home/user/.config/pollux",
    "home/user/.local",
    "home/user/.local/share",
    "home/user/.local/share/calls",
    "home/user/.local/share/contacts",
    "home/user/.purple",
    "home/user/.purple/chatty",
    "home/user/.purple/chatty/db",
    "home/user/Notes",
];

const LINKS: &[(&str, &str)] = &[
    ("bin", "usr/bin"),
    ("sbin", "usr/sbin"),
    ("lib", "usr/lib"),
    ("etc/localtime", "/usr/share/zoneinfo/Etc/UTC"),
    ("etc/mtab", "/proc/self/mounts"),
    // Written at boot or by DHCP, so not on the flash.
    ("etc/resolv.conf", "/run/resolv.conf"),
    ("var/log", "/run/log"),
    ("var/run", "/run"),
    ("var/tmp", "/tmp"),
];

/// Names under which busybox is found; in `usr/sbin` those that Debian has there.
const APPLETS: &[&str] = &[
    "[",
    "ash",
    "awk",
    "base64",
    "basename",
    "cat",
    "chgrp",
    "chmod",
    "chown",
    "chroot",
    "clear",
    "cmp",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "diff",
    "dirname",
    "dmesg",
    "du",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "free",
    "grep",
    "gunzip",
    "gzip",
    "head",
    "hexdump",
    "hostname",
    "id",
    "kill",
    "killall",
    "less",
    "ln",
    "logger",
    "ls",
    "md5sum",
    "mkdir",
    "mkfifo",
    "mknod",
    "mktemp",
    "more",
    "mount",
    "mv",
    "nc",
    "netstat",
    "nslookup",
    "od",
    "passwd",
    "patch",
    "pidof",
    "ping",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "realpath",
    "renice",
    "reset",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "setsid",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "strings",
    "stty",
    "su",
    "sync",
    "tail",
    "tar",
    "tee",
    "telnet",
    "test",
    "time",
    "timeout",
    "top",
    "touch",
    "tr",
    "true",
    "tty",
    "umount",
    "uname",
    "uniq",
    "unzip",
    "uptime",
    "usleep",
    "vi",
    "watch",
    "wc",
    "wget",
    "which",
    "who",
    "whoami",
    "xargs",
    "xxd",
    "xz",
    "yes",
    "zcat",
];
const SYSTEM_APPLETS: &[&str] = &[
    "depmod",
    "fdisk",
    "getty",
    "halt",
    "ifconfig",
    "init",
    "insmod",
    "ip",
    "lsmod",
    "modprobe",
    "poweroff",
    "reboot",
    "rmmod",
    "route",
    "swapoff",
    "swapon",
    "switch_root",
    "sysctl",
    "syslogd",
    "udhcpc",
    "uevent",
];

/// Our programs for the guest, as they are to be installed.
pub(crate) struct GuestPrograms {
    pub(crate) handset: Vec<u8>,
    pub(crate) agent: Vec<u8>,
    /// Goes into the initramfs.
    pub(crate) gate: Vec<u8>,
}

/// Lays everything over `tree`, which holds what came from packages. `identity` tells the system which image it is.
pub(crate) fn apply(tree: &mut Tree, programs: Option<&GuestPrograms>, identity: &str) {
    for (path, mode) in FOLDERS {
        tree.insert(path, Entry::directory(*mode));
    }
    for path in USER_FOLDERS {
        tree.insert(
            path,
            Entry::directory(if *path == "home/user" { 0o700 } else { 0o755 }).owned_by(USER_ID),
        );
    }
    for (path, mode, contents) in FILES {
        tree.insert(path, Entry::file(*mode, *contents));
    }
    for (path, target) in LINKS {
        tree.insert(path, Entry::symlink(target));
    }
    for applet in APPLETS {
        tree.insert(&format!("usr/bin/{applet}"), Entry::symlink("busybox"));
    }
    for applet in SYSTEM_APPLETS {
        tree.insert(
            &format!("usr/sbin/{applet}"),
            Entry::symlink("../bin/busybox"),
        );
    }
    tree.insert("usr/share/pollux/sync.toml", Entry::file(0o644, identity));
    if let Some(programs) = programs {
        tree.insert(
            "usr/bin/handset",
            Entry::file(0o755, programs.handset.as_slice()),
        );
        tree.insert(
            "usr/bin/pollux-agent",
            Entry::file(0o755, programs.agent.as_slice()),
        );
    }
}
