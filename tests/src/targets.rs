//! Where to put a finger: the handset's touch targets by name.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};

/// Centres of touch targets, in pixels of the phone's screen.
pub struct Targets(HashMap<String, (u32, u32)>);

impl Targets {
    /// As the handset itself lays them out. Needs its font on this machine.
    pub fn of_the_handset() -> Result<Targets> {
        let folder = tempfile::tempdir()?;
        let targets = handset::gallery::targets(folder.path(), Path::new(handset::draw::font::FOLDER))?;
        let places = targets.into_iter().map(|(name, x, y)| Ok((name, (u32::try_from(x)?, u32::try_from(y)?))));
        places.collect::<Result<_>>().map(Targets)
    }

    pub fn x(&self, name: &str) -> Result<u32> {
        self.at(name).map(|(x, _)| x)
    }

    pub fn y(&self, name: &str) -> Result<u32> {
        self.at(name).map(|(_, y)| y)
    }

    pub fn at(&self, name: &str) -> Result<(u32, u32)> {
        self.0.get(name).copied().with_context(|| format!("the handset has no target {name}"))
    }
}
