//! Asynchronous events (Base 2.0c §5.2.1) and how they are asked for (§5.27.1.8).

/// Event type: error.
pub const EVENT_ERROR: u8 = 0;
/// Event type: SMART and health status.
pub const EVENT_HEALTH: u8 = 1;
/// Event type: notice.
pub const EVENT_NOTICE: u8 = 2;
/// Event type: I/O command specific.
pub const EVENT_COMMAND_SET: u8 = 6;

/// Notice: namespace attributes changed.
pub const NOTICE_NAMESPACES: u8 = 0;
/// Notice: firmware activation starting.
pub const NOTICE_FIRMWARE: u8 = 1;
/// Notice: telemetry log changed.
pub const NOTICE_TELEMETRY: u8 = 2;

/// Log page identifiers that events name.
pub mod log {
    /// Error Information.
    pub const ERRORS: u8 = 0x01;
    /// Changed Namespace List.
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    /// Reservation Notification.
    pub const RESERVATION: u8 = 0x80;
    /// Sanitize Status.
    pub const SANITIZE: u8 = 0x81;
    /// Changed Zone List.
    pub const CHANGED_ZONES: u8 = 0xbf;
    /// Pages that reading takes nothing out of but their event (errors, health, firmware, sanitize), and
    /// the changed namespaces, which the driver keeps.
    pub const SAME_FOR_ALL: [u8; 5] = [ERRORS, 0x02, 0x03, CHANGED_NAMESPACES, SANITIZE];
}

/// Set Features: Asynchronous Event Configuration.
pub const FEATURE_EVENTS: u32 = 0x0b;
/// Asynchronous Event Configuration: all critical warnings of SMART.
pub const EVENTS_HEALTH: u32 = 0x1f;
/// Asynchronous Event Configuration, and OAES: namespace attributes, firmware activation, telemetry.
pub const EVENTS_NOTICES: u32 = 0b111 << 8;
