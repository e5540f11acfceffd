//! One verification: the questions to the phone, one after the other, and what follows from the answers.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use flash::Flash;
use sync_protocol::limits::LIST_ENTRIES_MAX;
use sync_protocol::scope::Scope;
use sync_protocol::tree::Entry;
use sync_protocol::wire::{self, CommandResult, CommandStatus, command};
use sync_protocol::{Hash, PhonePath};

use super::compare::{Entries, Parting, first_parting, listed};
use super::{Finding, FindingKind, How, Inner, ProofError, TIME_MAX, Verdict, blocking, heal};
use crate::commands::{CommandError, Reply};
use crate::log::Cut;
use crate::phones::Phone;
use crate::sync::SendError;

/// Questions to a phone in one verification: down to the first path in a tree of some millions of files, many times over.
const QUESTIONS_MAX: usize = 8192;
/// How often one question is asked again because both sides changed files around its answer.
const MOVES_MAX: usize = 16;
/// Paths that are healed in one verification; with more, something is wrong that healing one by one does not mend.
const HEALED_MAX: usize = 64;
/// A list is answered from memory; behind it may wait a scan of the phone's files, and a slow line.
const LIST_WITHIN: Duration = Duration::from_secs(300);

pub(super) struct Verification {
    pub(super) inner: Arc<Inner>,
    pub(super) phone: Phone,
    how: How,
    verdict: Verdict,
    questions: usize,
    /// Where the phone stood at its last answer.
    flash: Option<Flash>,
}

/// A phone's root hash, and what is needed to compare it.
struct Root {
    hash: Hash,
    scope: Scope,
    position: u64,
}

/// Where phone and flash part.
#[derive(Debug, Clone)]
pub(super) struct Difference {
    pub(super) path: PhonePath,
    pub(super) phone: Option<Entry>,
    pub(super) flash: Option<Entry>,
    pub(super) position: u64,
}

/// Entries of one directory on both sides, at one position.
struct Page {
    phone: Entries,
    flash: Entries,
    more: bool,
    position: u64,
}

impl Verification {
    pub(super) fn new(inner: Arc<Inner>, phone: Phone, how: How) -> Verification {
        let verdict = Verdict::begun(how.reread);
        Verification { inner, phone, how, verdict, questions: 0, flash: None }
    }

    /// What it has come to so far.
    pub(super) fn into_verdict(self) -> Verdict {
        self.verdict
    }

    /// The root hash of both if they are the same; none if they differ.
    pub(super) async fn run(&mut self) -> Result<Option<Hash>, ProofError> {
        let (logs, phone) = (self.inner.parts.logs.clone(), self.phone.id.clone());
        let begun = blocking(move || Ok(logs.last(&phone)?)).await?;
        if self.how.reread {
            self.say("the phone reads its files again");
            self.rescan(&PhonePath::root(), false).await?;
        }
        let mut root = self.root().await?;
        self.take_reports(begun, root.position).await?;
        if !self.verdict.findings.is_empty() {
            // They may have been answered by changes of ours, which the phone has made by its next answer.
            root = self.root().await?;
        }
        let (mut healed, mut vanished) = (HashSet::new(), 0);
        loop {
            let ours = self.flash_at(root.position).await?;
            let scope = root.scope.clone();
            let ours = blocking(move || Ok(ours.root(&scope))).await?;
            if ours == root.hash {
                return Ok(Some(ours));
            }
            self.ensure_nothing_waits().await?;
            self.say("phone and flash differ; looking for where");
            let Some(difference) = self.descend(&root.scope).await? else {
                vanished += 1;
                if vanished > MOVES_MAX {
                    return Err(ProofError::Moving);
                }
                root = self.root().await?;
                continue;
            };
            let again = healed.contains(&difference.path);
            let heals = self.how.heal && !again && healed.len() < HEALED_MAX;
            self.diverged(&difference, heals, again).await?;
            if !heals {
                return Ok(None);
            }
            self.say("the phone tells again what differs");
            self.rescan(&difference.path, true).await?;
            healed.insert(difference.path);
            root = self.root().await?;
        }
    }

    /// Says what is being done, to whoever watches.
    fn say(&self, doing: &str) {
        self.inner.tell(&self.phone.id, |standing| standing.running = Some(doing.to_owned()));
    }

    async fn diverged(&mut self, difference: &Difference, heals: bool, again: bool) -> Result<(), ProofError> {
        let (inner, phone, of) = (self.inner.clone(), self.phone.id.clone(), difference.clone());
        let outcome = match (heals, again) {
            (true, _) => "the phone is asked to tell it again",
            (false, true) => "it was told again, and differs still",
            (false, false) => "nothing is done about it",
        };
        let finding = blocking(move || {
            let event = heal::explain(&inner.parts.logs, &phone, &of.path, of.position)?;
            let finding = Finding {
                path: of.path.to_vec(),
                position: of.position,
                kind: FindingKind::Divergence,
                phone: of.phone.map(|entry| heal::side(&entry)),
                flash: of.flash.map(|entry| heal::side(&entry)),
                event,
                outcome: outcome.to_owned(),
            };
            inner.parts.logs.append_ours(&phone, |_| vec![heal::diverged(&finding, &of.path)])?;
            Ok(finding)
        });
        let finding = finding.await?;
        self.verdict.note(finding);
        Ok(())
    }

    /// Acts on what the phone reported since `begun` of its own files.
    async fn take_reports(&mut self, begun: u64, until: u64) -> Result<(), ProofError> {
        let (inner, phone, heals) = (self.inner.clone(), self.phone.clone(), self.how.heal);
        let findings = blocking(move || heal::reports(&inner.parts, &phone, begun, until, heals)).await?;
        findings.into_iter().for_each(|finding| self.verdict.note(finding));
        Ok(())
    }

    /// What waits for the phone is in the flash already: the difference would be explained, and go by itself.
    async fn ensure_nothing_waits(&self) -> Result<(), ProofError> {
        let (commands, phone) = (self.inner.parts.commands.clone(), self.phone.id.clone());
        match blocking(move || Ok(commands.waiting(&phone)?)).await? {
            0 => Ok(()),
            waiting => Err(ProofError::Waiting(waiting)),
        }
    }

    async fn ask(&mut self, question: command::Command, within: Duration) -> Result<(u64, Reply), ProofError> {
        self.questions += 1;
        if self.questions > QUESTIONS_MAX {
            return Err(ProofError::TooDeep(QUESTIONS_MAX));
        }
        Ok(self.inner.parts.commands.ask(&self.phone.id, question, within).await?)
    }

    async fn rescan(&mut self, path: &PhonePath, resend: bool) -> Result<(), ProofError> {
        let request = wire::RescanRequest { path: path.to_vec(), resend };
        match self.ask(command::Command::Rescan(request), LIST_WITHIN).await? {
            (_, Reply::Result(result)) => done(result).map(drop),
            (_, Reply::Root(_)) => Err(ProofError::Contract("a root hash for no question of it")),
        }
    }

    async fn root(&mut self) -> Result<Root, ProofError> {
        for _ in 0..MOVES_MAX {
            let question = command::Command::Root(wire::RootRequest {});
            let told = match self.ask(question, TIME_MAX).await? {
                (id, Reply::Root(told)) => (id, told),
                (_, Reply::Result(result)) => return Err(ProofError::Phone(result.text)),
            };
            let (id, told) = told;
            if let Some(position) = self.position_of(told.seq, id).await? {
                let scope = Scope::from_bytes(&told.roots, &told.excludes)?;
                let hash = Hash::try_from(told.root.as_slice()).map_err(|_| ProofError::Contract("a root that is no hash"))?;
                self.verdict.position = position;
                return Ok(Root { hash, scope, position });
            }
        }
        Err(ProofError::Moving)
    }

    /// The first path in which the phone differs from the flash; none: not any more.
    async fn descend(&mut self, scope: &Scope) -> Result<Option<Difference>, ProofError> {
        for root in scope.roots() {
            let Some(directory) = root.parent() else {
                return self.first_beneath(root.clone(), scope).await;
            };
            match self.parting_at(&directory, root, scope).await? {
                None => {}
                Some(difference) if difference.1 => return self.first_beneath(root.clone(), scope).await,
                Some((difference, _)) => return Ok(Some(difference)),
            }
        }
        Ok(None)
    }

    /// How the sides differ at a root itself, if they do; and whether only in what is beneath it.
    async fn parting_at(
        &mut self,
        directory: &PhonePath,
        root: &PhonePath,
        scope: &Scope,
    ) -> Result<Option<(Difference, bool)>, ProofError> {
        let name: Box<[u8]> = root.name().unwrap_or_default().into();
        let mut after = Vec::new();
        loop {
            let page = self.page(directory, &after, scope).await?;
            // Above the roots the phone knows nothing but the ways to them.
            let entry = page.phone.iter().find(|(listed, _)| *listed == name).map(|(_, entry)| *entry);
            let last = page.phone.last().map(|(last, _)| last.to_vec());
            match last {
                Some(last) if entry.is_none() && page.more && *last < *name => after = last,
                _ => {
                    let flash = self.flash_at(page.position).await?;
                    let (of, within) = (root.clone(), scope.clone());
                    let ours = blocking(move || Ok(flash.entry_in(&of, &within))).await?;
                    let parting = Parting { name, phone: entry, flash: ours };
                    let difference =
                        Difference { path: root.clone(), phone: entry, flash: ours, position: page.position };
                    return Ok((entry != ours).then(|| (difference, parting.is_beneath())));
                }
            }
        }
    }

    /// The first path beneath `directory` in which the sides differ; none: not any more.
    async fn first_beneath(&mut self, mut directory: PhonePath, scope: &Scope) -> Result<Option<Difference>, ProofError> {
        let mut after = Vec::new();
        loop {
            let page = self.page(&directory, &after, scope).await?;
            match first_parting(&page.phone, &page.flash, page.more) {
                Some(parting) => {
                    let path = directory.join(&parting.name).map_err(|_| ProofError::Contract("a path that is too long"))?;
                    if !parting.is_beneath() {
                        let Parting { phone, flash, .. } = parting;
                        return Ok(Some(Difference { path, phone, flash, position: page.position }));
                    }
                    (directory, after) = (path, Vec::new());
                }
                None => match page.phone.last() {
                    Some((last, _)) if page.more => after = last.to_vec(),
                    _ if page.more => return Err(ProofError::Contract("an empty list that goes on")),
                    _ => return Ok(None),
                },
            }
        }
    }

    /// The phone's entries of a directory after a name, and the flash's at the position that they are of.
    async fn page(&mut self, directory: &PhonePath, after: &[u8], scope: &Scope) -> Result<Page, ProofError> {
        for _ in 0..MOVES_MAX {
            let request = wire::ListRequest { path: directory.to_vec(), after: after.to_vec() };
            let (id, result) = match self.ask(command::Command::List(request), LIST_WITHIN).await? {
                (id, Reply::Result(result)) => (id, done(result)?),
                (_, Reply::Root(_)) => return Err(ProofError::Contract("a root hash for no question of it")),
            };
            let Some(position) = self.position_of(result.at_seq, id).await? else { continue };
            if result.entries.len() > LIST_ENTRIES_MAX {
                return Err(ProofError::Contract("a list that is too long"));
            }
            let phone = listed(result.entries, after).ok_or(ProofError::Contract("a list that is not sorted"))?;
            let flash = self.flash_at(position).await?;
            let (of, within, from) = (directory.clone(), scope.clone(), after.to_vec());
            // One more than the phone may list: then the lists part before the flash's ends.
            let ours = move || Ok(flash.entries_in(&of, &within, &from, LIST_ENTRIES_MAX + 1).unwrap_or_default());
            return Ok(Page { phone, flash: blocking(ours).await?, more: result.more, position });
        }
        Err(ProofError::Moving)
    }

    /// Where the phone stood when it answered `command` with `seq` as its last event; waits until that has come. None: nowhere.
    async fn position_of(&mut self, seq: u64, command: u64) -> Result<Option<u64>, ProofError> {
        let mut grown = self.inner.parts.logs.watch(&self.phone.id)?;
        let gone = self.inner.parts.commands.gone(&self.phone.id)?;
        loop {
            let (logs, phone) = (self.inner.parts.logs.clone(), self.phone.id.clone());
            let has_come = move || match logs.acked(&phone)? {
                Some(acked) if acked >= seq => Ok(Some(logs.cut(&phone, seq, command)?)),
                _ => Ok(None),
            };
            match blocking(has_come).await? {
                Some(Cut::At(position)) => return Ok(Some(position)),
                Some(Cut::None) => return Ok(None),
                None => tokio::select! {
                    changed = grown.changed() => changed.map_err(|_| ProofError::Interrupted)?,
                    () = gone.cancelled() => return Err(CommandError::Send(SendError::NotConnected).into()),
                },
            }
        }
    }

    /// The phone's flash at `position`: one copy is moved on as the answers come.
    async fn flash_at(&mut self, position: u64) -> Result<Flash, ProofError> {
        let (inner, phone, had) = (self.inner.clone(), self.phone.clone(), self.flash.take());
        let moved = blocking(move || {
            let flashes = &inner.parts.flashes;
            match had {
                Some(copy) if copy.position() <= position => flashes.move_to(&copy, position).map(|()| copy),
                _ => flashes.copy(&phone, position),
            }
            .map_err(ProofError::from)
        });
        Ok(self.flash.insert(moved.await?).clone())
    }
}

fn done(result: CommandResult) -> Result<CommandResult, ProofError> {
    match result.status() {
        CommandStatus::Done => Ok(result),
        _ => Err(ProofError::Phone(result.text)),
    }
}
