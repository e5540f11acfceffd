//! What just changed, for whoever watches: a bounded broadcast of small notices.
//!
//! A notice says what to look at again, never what it became, so losing some harms nobody: a watcher that fell
//! behind is told so and looks at everything.

use serde::Serialize;
use store::PhoneId;
use tokio::sync::broadcast;

/// Notices a watcher may fall behind.
const NOTICES_MAX: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Notice {
    /// A phone's record, connection or synchronisation changed, or a phone appeared.
    Phone {
        #[schema(value_type = String)]
        phone: PhoneId,
    },
    /// A phone's log reaches to `position` now.
    Log {
        #[schema(value_type = String)]
        phone: PhoneId,
        position: u64,
    },
    /// A twin's state changed, or it has caught up with its phone's log.
    Twin {
        #[schema(value_type = String)]
        phone: PhoneId,
    },
    /// A drive lease began or ended.
    Drive {
        #[schema(value_type = String)]
        phone: PhoneId,
    },
    /// Phone and help-desk changed the same path.
    Conflict {
        #[schema(value_type = String)]
        phone: PhoneId,
    },
    /// Users or enrolment codes changed.
    Settings,
}

#[derive(Clone)]
pub struct Live {
    sender: broadcast::Sender<Notice>,
}

impl Default for Live {
    fn default() -> Live {
        Live { sender: broadcast::channel(NOTICES_MAX).0 }
    }
}

impl Live {
    pub fn tell(&self, notice: Notice) {
        // An error means that nobody watches.
        let _ = self.sender.send(notice);
    }

    pub fn watch(&self) -> broadcast::Receiver<Notice> {
        self.sender.subscribe()
    }
}
