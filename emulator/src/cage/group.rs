//! A control group for a caged process (cgroups(7), version 2): what it may take of the host's memory, threads and processors.
//!
//! The group is a child of a group in which `memory` and `pids` are handed on to children (`cgroup.subtree_control`): the one that we
//! run in, or the one above it, as under systemd. Nothing is enabled in groups that are not ours.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Where version 2 is, if it is all that there is (systemd's "unified").
const HIERARCHY: &str = "/sys/fs/cgroup";
/// Beyond guest RAM and translated code: heap, stacks, a screen and its watchers' copies, and what is read and written of files.
const MEMORY_BEYOND_GUEST: u64 = 1 << 30;
/// Two for each of 32 clients, four that wait for each of 16, and the machine's own.
const THREADS_MAX: u32 = 256;
/// Microseconds of processor time in each tenth of a second: a vCPU, and as much again for devices and watchers.
const PROCESSORS: &str = "200000 100000";

/// A group that nobody else is in; removed when dropped, if it is empty by then.
pub(super) struct Group(PathBuf);

impl Group {
    /// Makes a group below where this process runs, for one that needs `memory` bytes. An error is the reason why there is none.
    pub(super) fn make(memory: u64) -> Result<Self, String> {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let ours = groups.lines().find_map(|line| line.strip_prefix("0::/"));
        let is_there = Path::new(HIERARCHY).join("cgroup.controllers").is_file();
        let ours = ours.filter(|_| is_there).ok_or("this host has no version 2 of them at /sys/fs/cgroup")?;
        let ours = Path::new(HIERARCHY).join(ours);
        let above = ours.parent().filter(|above| above.starts_with(HIERARCHY));
        let name = format!("pollux-twin-{}", std::process::id());
        Self::below(&ours, &name, memory).or_else(|why| above.map_or(Err(why), |above| Self::below(above, &name, memory)))
    }

    fn below(parent: &Path, name: &str, memory: u64) -> Result<Self, String> {
        let failed = |path: &Path| { let path = path.display().to_string(); move |error| format!("{path}: {error}") };
        let control = parent.join("cgroup.subtree_control");
        let handed_on = fs::read_to_string(&control).map_err(failed(&control))?;
        let has = |controller: &str| handed_on.split_ascii_whitespace().any(|word| word == controller);
        if !has("memory") || !has("pids") {
            return Err(format!("{} does not hand on memory and pids", parent.display()));
        }
        let group = Self(parent.join(name));
        // Ours of an earlier process with this number may be left.
        fs::create_dir(&group.0).or_else(|e| if group.0.is_dir() { Ok(()) } else { Err(e) }).map_err(failed(&group.0))?;
        let set = |key: &str, value: String| fs::write(group.0.join(key), value).map_err(failed(&group.0.join(key)));
        set("memory.max", memory.saturating_add(MEMORY_BEYOND_GUEST).to_string())?;
        set("pids.max", THREADS_MAX.to_string())?;
        if has("cpu") {
            set("cpu.max", PROCESSORS.into())?;
        }
        Ok(group)
    }

    /// Whoever writes `0` to this enters the group.
    pub(super) fn door(&self) -> std::io::Result<File> {
        File::options().write(true).open(self.0.join("cgroup.procs"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            tracing::warn!(%error, group = %self.0.display(), "cannot remove a control group");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like a group.
    fn parent(handed_on: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.subtree_control"), handed_on).unwrap();
        dir
    }

    #[test]
    fn limits_are_set_where_they_can_be() {
        let parent = parent("cpu memory pids\n");
        let group = Group::below(parent.path(), "twin", 256 << 20).unwrap();
        let of = |key: &str| fs::read_to_string(group.0.join(key)).unwrap();
        assert_eq!([of("memory.max"), of("pids.max"), of("cpu.max")], ["1342177280", "256", "200000 100000"]);
    }

    #[test]
    fn what_is_missing_is_told() {
        let parent = parent("cpu memory\n");
        let why = Group::below(parent.path(), "twin", 0).err().unwrap();
        assert!(why.ends_with("does not hand on memory and pids"), "{why}");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1, "nothing is left");
    }
}
