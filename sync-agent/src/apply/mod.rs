//! Doing on the phone what the appliance commands: file changes ([`files`]), input ([`input`]), leases ([`lease`]).

pub(crate) mod drive;
pub(crate) mod feeding;
pub(crate) mod files;
pub(crate) mod input;
pub(crate) mod lease;
pub(crate) mod spool;
pub(crate) mod uinput;

pub(crate) use files::is_unfinished;
