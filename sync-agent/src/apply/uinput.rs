//! The agent's two input devices, made with uinput. Where there is no `/dev/uinput` the first frame says so.

use std::io;

use evdev::uinput::VirtualDevice;
use evdev::{AbsInfo, AbsoluteAxisCode as Abs, AttributeSet, KeyCode, PropType, UinputAbsSetup};
use sync_protocol::event::{Frame, MmiDevice};
use sync_protocol::seat::{SLOTS, TRACKING_ID_MAX, code};

use super::input::{InputSink, REMOTE_PREFIX};

pub(crate) struct Uinput {
    keyboard: VirtualDevice,
    touch: VirtualDevice,
    panel: (u32, u32),
}

impl Uinput {
    /// Makes the devices; the panel's axes end at `panel`, best those of the phone's own.
    pub(crate) fn new(panel: (u32, u32)) -> io::Result<Self> {
        let keys = code::KEYS.filter_map(|key| u16::try_from(key).ok());
        let keys: AttributeSet<KeyCode> = keys.map(KeyCode).collect();
        let keyboard = VirtualDevice::builder()?
            .name(&format!("{REMOTE_PREFIX} Keyboard"))
            .with_keys(&keys)?
            .build()?;
        let axis = |code, max: u32| {
            UinputAbsSetup::new(
                code,
                AbsInfo::new(0, 0, i32::try_from(max).unwrap_or(i32::MAX), 0, 0, 0),
            )
        };
        let touch = VirtualDevice::builder()?
            .name(&format!("{REMOTE_PREFIX} Touch"))
            .with_keys(
                &[KeyCode::BTN_TOUCH]
                    .into_iter()
                    .collect::<AttributeSet<_>>(),
            )?
            .with_properties(&[PropType::DIRECT].into_iter().collect::<AttributeSet<_>>())?
            .with_absolute_axis(&axis(Abs::ABS_X, panel.0))?
            .with_absolute_axis(&axis(Abs::ABS_Y, panel.1))?
            .with_absolute_axis(&axis(Abs::ABS_MT_SLOT, SLOTS.cast_unsigned() - 1))?
            .with_absolute_axis(&axis(
                Abs::ABS_MT_TRACKING_ID,
                TRACKING_ID_MAX.cast_unsigned(),
            ))?
            .with_absolute_axis(&axis(Abs::ABS_MT_POSITION_X, panel.0))?
            .with_absolute_axis(&axis(Abs::ABS_MT_POSITION_Y, panel.1))?
            .build()?;
        Ok(Self {
            keyboard,
            touch,
            panel,
        })
    }
}

impl InputSink for Uinput {
    fn panel(&self) -> (u32, u32) {
        self.panel
    }

    fn emit(&mut self, frame: &Frame) -> io::Result<()> {
        let device = match frame.device {
            MmiDevice::Touch | MmiDevice::Pointer => &mut self.touch,
            MmiDevice::Keyboard | MmiDevice::Unspecified => &mut self.keyboard,
        };
        let number =
            |value| u16::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        let events = frame
            .events
            .iter()
            .map(|event| {
                Ok(evdev::InputEvent::new(
                    number(event.r#type)?,
                    number(event.code)?,
                    event.value,
                ))
            })
            .collect::<io::Result<Vec<_>>>()?;
        device.emit(&events)
    }
}
