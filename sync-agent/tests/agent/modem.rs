//! A modem for tests: AT commands (3GPP TS 27.007, 27.005, V.250) on the abstract socket that ModemManager's test profile
//! connects to. What ModemManager asks of it and what it does not know, it refuses, as modems do.

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

/// Cloning shares it.
#[derive(Clone)]
pub(crate) struct Modem {
    state: Arc<Mutex<State>>,
}

struct State {
    network: Network,
    /// How the operator is to be told, `AT+COPS=3,0` or `AT+COPS=3,2`.
    names_operator: bool,
    /// As `AT+CLCC` lists them.
    call: Option<SimulatedCall>,
    /// A message in its store, as a PDU.
    message: Option<String>,
    /// Whoever is connected hears of what happens.
    listeners: Vec<UnixStream>,
}

#[derive(Clone)]
pub(crate) struct Network {
    /// As in `+CREG`: 1 home, 2 searching, 5 roaming.
    pub(crate) registration: u8,
    pub(crate) code: &'static str,
    pub(crate) name: &'static str,
    pub(crate) area: u16,
    pub(crate) cell: u32,
    /// As in `+CSQ`: 0 to 31.
    pub(crate) signal: u8,
}

struct SimulatedCall {
    is_incoming: bool,
    /// As in `+CLCC`: 0 active, 2 dialing, 3 alerting, 4 incoming.
    state: u8,
    number: String,
}

pub(crate) const HOME: Network = Network {
    registration: 1,
    code: "26201",
    name: "Telekom.de",
    area: 0x18a2,
    cell: 0x0123_4567,
    signal: 20,
};

pub(crate) const ABROAD: Network = Network {
    registration: 5,
    code: "20801",
    name: "Orange F",
    area: 0x2b01,
    cell: 0x00ab_cdef,
    signal: 10,
};

impl Modem {
    /// Listens at the abstract socket `name` until the test ends.
    pub(crate) fn start(name: &str) -> Self {
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let state = State {
            network: HOME,
            names_operator: false,
            call: None,
            message: None,
            listeners: Vec::new(),
        };
        let modem = Self {
            state: Arc::new(Mutex::new(state)),
        };
        let accepting = modem.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (modem, stream) = (accepting.clone(), stream.unwrap());
                let listener = stream.try_clone().unwrap();
                modem.state.lock().unwrap().listeners.push(listener);
                std::thread::spawn(move || modem.serve(stream));
            }
        });
        modem
    }

    /// Moves to another network, or another place in it.
    pub(crate) fn move_to(&self, network: Network) {
        let mut state = self.state.lock().unwrap();
        state.network = network;
        let registered = state.registered();
        for prefix in ["+CREG", "+CGREG", "+CEREG"] {
            state.say(&format!("{prefix}: {registered}"));
        }
    }

    pub(crate) fn lose_network(&self) {
        let mut state = self.state.lock().unwrap();
        state.network.registration = 2;
        for prefix in ["+CREG", "+CGREG", "+CEREG"] {
            state.say(&format!("{prefix}: 2"));
        }
    }

    pub(crate) fn ring(&self, number: &str) {
        let mut state = self.state.lock().unwrap();
        state.call = Some(SimulatedCall {
            is_incoming: true,
            state: 4,
            number: number.into(),
        });
        state.say("RING");
        state.say(&format!("+CLIP: \"{number}\",145,,,,0"));
    }

    /// The other side hangs up, or the network does.
    pub(crate) fn end_call(&self) {
        let mut state = self.state.lock().unwrap();
        state.call = None;
        state.say("NO CARRIER");
    }

    /// The called party's telephone rings, then is taken up.
    pub(crate) fn answer(&self) {
        let mut state = self.state.lock().unwrap();
        state.call.as_mut().unwrap().state = 0;
    }

    pub(crate) fn deliver(&self, number: &str, text: &str) {
        let mut state = self.state.lock().unwrap();
        state.message = Some(delivery(number, text));
        state.say("+CMTI: \"ME\",1");
    }

    fn serve(&self, mut stream: UnixStream) {
        let mut line = Vec::new();
        let mut byte = [0];
        while stream.read(&mut byte).is_ok_and(|count| count == 1) {
            match byte[0] {
                b'\r' | 0x1a => {
                    let command = String::from_utf8_lossy(&line).trim().to_uppercase();
                    line.clear();
                    // A modem that nobody listens to any more.
                    let reply = self.state.lock().unwrap().reply(&command, byte[0] == 0x1a);
                    if stream.write_all(reply.as_bytes()).is_err() {
                        return;
                    }
                }
                other => line.push(other),
            }
        }
    }
}

impl State {
    fn say(&mut self, what: &str) {
        let said = format!("\r\n{what}\r\n");
        self.listeners
            .retain_mut(|listener| listener.write_all(said.as_bytes()).is_ok());
    }

    /// Registration and place, as in `+CREG` (access technology 7 is E-UTRAN).
    fn registered(&self) -> String {
        let Network {
            registration,
            area,
            cell,
            ..
        } = self.network;
        match registration {
            1 | 5 => format!("{registration},\"{area:04X}\",\"{cell:08X}\",7"),
            _ => registration.to_string(),
        }
    }

    fn reply(&mut self, command: &str, is_message: bool) -> String {
        if command.is_empty() {
            return String::new();
        }
        if command.starts_with("AT+CMGS=") {
            return "\r\n> ".into();
        }
        if is_message {
            return "\r\n+CMGS: 1\r\n\r\nOK\r\n".into();
        }
        match self.information(command) {
            Some(information) if information.is_empty() => "\r\nOK\r\n".into(),
            Some(information) => format!("\r\n{information}\r\n\r\nOK\r\n"),
            None => "\r\nERROR\r\n".into(),
        }
    }

    /// What comes before OK; nothing for an error.
    fn information(&mut self, command: &str) -> Option<String> {
        let registered = self.registered();
        let is_served = matches!(self.network.registration, 1 | 5);
        Some(match command {
            "ATE0" | "ATV1" | "ATX4" | "ATZ" | "AT&C1" => String::new(),
            "AT+CGMI" => "Pollux".into(),
            "AT+CGMM" => "Simulated".into(),
            "AT+CGMR" => "1".into(),
            "AT+CGSN" => "490154203237518".into(),
            "AT+GCAP" => "+GCAP: +CGSM,+DS,+ES".into(),
            "AT+WS46=?" => "+WS46: (12,22,25,28)".into(),
            "AT+CPIN?" => "+CPIN: READY".into(),
            "AT+CIMI" => "262011234567890".into(),
            "AT+CNUM" => "+CNUM: ,\"+491701234567\",145".into(),
            "AT+CFUN?" => "+CFUN: 1".into(),
            "AT+CSQ" => format!("+CSQ: {},99", self.network.signal),
            "AT+CREG?" => format!("+CREG: 2,{registered}"),
            "AT+CGREG?" => format!("+CGREG: 2,{registered}"),
            "AT+CEREG?" => format!("+CEREG: 2,{registered}"),
            "AT+COPS=3,2" | "AT+COPS=3,0" => {
                self.names_operator = command.ends_with('0');
                String::new()
            }
            "AT+COPS?" if !is_served => "+COPS: 0".into(),
            "AT+COPS?" if self.names_operator => format!("+COPS: 0,0,\"{}\",7", self.network.name),
            "AT+COPS?" => format!("+COPS: 0,2,\"{}\",7", self.network.code),
            "AT+CSCS=?" => "+CSCS: (\"IRA\",\"UCS2\",\"GSM\")".into(),
            "AT+CSCS?" => "+CSCS: \"IRA\"".into(),
            "AT+CGDCONT=?" => "+CGDCONT: (1-16),\"IP\",,,(0-2),(0-4)".into(),
            "AT+CMGF=?" => "+CMGF: (0,1)".into(),
            "AT+CPMS=?" => "+CPMS: (\"ME\"),(\"ME\"),(\"ME\")".into(),
            "AT+CPMS?" => "+CPMS: \"ME\",0,10,\"ME\",0,10,\"ME\",0,10".into(),
            "AT+CNMI=?" => "+CNMI: (0-2),(0-3),(0-3),(0-2),(0-1)".into(),
            "AT+CMGL=4" => String::new(),
            "AT+CMGR=1" => {
                let pdu = self.message.as_ref()?;
                format!("+CMGR: 0,,{}\r\n{pdu}", pdu.len() / 2 - 1)
            }
            "AT+CLCC=?" => String::new(),
            "AT+CLCC" => self.call.as_ref().map_or_else(String::new, |call| {
                let direction = u8::from(call.is_incoming);
                format!(
                    "+CLCC: 1,{direction},{},0,0,\"{}\",145",
                    call.state, call.number
                )
            }),
            "ATA" => {
                self.call.as_mut()?.state = 0;
                String::new()
            }
            "ATH" | "AT+CHUP" => {
                self.call = None;
                String::new()
            }
            _ if command.starts_with("ATD") => {
                self.call = Some(SimulatedCall {
                    is_incoming: false,
                    state: 2,
                    number: command[3..].trim_end_matches(';').into(),
                });
                String::new()
            }
            _ if command.starts_with("AT+CPMS=") => "+CPMS: 0,10,0,10,0,10".into(),
            // Settings that make no difference here.
            _ => {
                let is_setting = command.starts_with("AT+") && command.contains('=');
                let is_query = command.ends_with('?') || command.starts_with("AT+CRSM");
                (is_setting && !is_query).then(String::new)?
            }
        })
    }
}

/// An SMS-DELIVER of 2026-11-27 10:32:45 UTC+1, in UCS-2 (3GPP TS 23.040, 9.2.2.1), without a service centre.
fn delivery(number: &str, text: &str) -> String {
    let digits = number.trim_start_matches('+');
    let mut padded = digits.to_owned();
    if digits.len() % 2 == 1 {
        padded.push('F');
    }
    let swapped: String = padded
        .as_bytes()
        .chunks(2)
        .flat_map(|pair| [char::from(pair[1]), char::from(pair[0])])
        .collect();
    let words: String = text
        .encode_utf16()
        .map(|unit| format!("{unit:04X}"))
        .collect();
    format!(
        "0004{:02X}91{swapped}000862117201235440{:02X}{words}",
        digits.len(),
        words.len() / 2
    )
}
