-- The usage database of a phone, version 1. Times are microseconds since the Unix epoch (UTC), by the phone's clock.

-- A spell during which a modem was registered in the same way, with the same network, by the same generation of
-- technology, at the same cell: the tower stamp of other rows.
CREATE TABLE radio (
    id INTEGER PRIMARY KEY,
    modem TEXT NOT NULL,            -- the same on this phone for good
    began_us INTEGER NOT NULL,
    ended_us INTEGER,               -- NULL: it goes on. After a crash: as far as is known
    registration TEXT NOT NULL,     -- home, roaming, none, denied, emergency
    mcc TEXT NOT NULL,              -- three digits, or empty: unknown
    mnc TEXT NOT NULL,              -- two or three digits, or empty
    operator TEXT NOT NULL,         -- as it calls itself
    technology TEXT NOT NULL,       -- 2G, 2.5G, 3G, 4G, 5G, or empty
    lac INTEGER NOT NULL,           -- 3GPP TS 23.003; 0: unknown
    tac INTEGER NOT NULL,
    cell INTEGER NOT NULL
) STRICT;

-- A sample of the signal's strength, whenever it changed; and of the phone's position, where it is known (WGS 84, degrees).
CREATE TABLE signal (
    id INTEGER PRIMARY KEY,
    at_us INTEGER NOT NULL,
    radio INTEGER NOT NULL,
    percent INTEGER NOT NULL,       -- 0 to 100
    latitude REAL,
    longitude REAL
) STRICT;

-- A call, from its first ring on.
CREATE TABLE call (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,      -- as in the events of the log
    modem TEXT NOT NULL,
    direction TEXT NOT NULL,        -- in, out
    party TEXT NOT NULL,            -- the other number; empty: withheld
    started_us INTEGER NOT NULL,
    answered_us INTEGER,
    ended_us INTEGER,
    state TEXT NOT NULL,            -- open, ended, unfinished: nobody saw how it ended
    end_reason TEXT,                -- terminated, refused, error, audio, transferred, deflected, modem, or unknown
    dropped INTEGER NOT NULL,       -- 1: it had been answered, and was cut off by the network
    start_radio INTEGER,            -- where it began; NULL: not known
    start_percent INTEGER,          -- the signal then
    start_latitude REAL,
    start_longitude REAL,
    end_radio INTEGER,
    end_percent INTEGER,
    end_latitude REAL,
    end_longitude REAL
) STRICT;
CREATE INDEX call_started ON call (started_us);

-- A short message. Its words are not kept.
CREATE TABLE message (
    id INTEGER PRIMARY KEY,
    modem TEXT NOT NULL,
    direction TEXT NOT NULL,        -- in, out
    party TEXT NOT NULL,
    at_us INTEGER NOT NULL,         -- when it was noticed
    network_time TEXT NOT NULL,     -- the service centre's stamp, ISO 8601; or empty
    size_bytes INTEGER NOT NULL,
    radio INTEGER,
    percent INTEGER,
    latitude REAL,
    longitude REAL
) STRICT;
CREATE INDEX message_known ON message (network_time, party);

-- A spell of roaming in one network. It outlives the radio spells it is made of.
CREATE TABLE roaming (
    id INTEGER PRIMARY KEY,
    modem TEXT NOT NULL,
    began_us INTEGER NOT NULL,
    ended_us INTEGER,
    mcc TEXT NOT NULL,
    mnc TEXT NOT NULL,
    operator TEXT NOT NULL
) STRICT;
