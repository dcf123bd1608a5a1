//! What can go wrong, in the client's words: stable error codes for frames, close codes for sessions.

use serde::{Deserialize, Serialize};

/// The stable codes of an `error` response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The frame is malformed; the message says which field.
    BadRequest,
    /// The chat or message does not exist.
    NotFound,
    /// The message is not the caller's.
    Forbidden,
    /// The same key was used before with other content.
    Conflict,
    /// The frame is over the size limit.
    TooLarge,
    /// The session sends faster than allowed; try again after `retryAfter`.
    RateLimited,
    /// The service can't take the request now; try again after `retryAfter`.
    Unavailable,
}

/// The `error` of a response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{code:?}: {message}")]
pub struct Error {
    /// What kind of error, for programs.
    pub code: ErrorCode,
    /// What exactly, for people.
    pub message: String,
    /// Milliseconds to wait before trying again; only with `rate_limited` and `unavailable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}

impl Error {
    fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after: None }
    }

    /// The frame is malformed; `message` names the field.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::BadRequest, message)
    }

    /// There is no such chat or message.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotFound, message)
    }

    /// The caller may not do that.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Forbidden, message)
    }

    /// The same key was used before with other content.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Conflict, message)
    }

    /// The frame is over `limit` bytes.
    pub fn too_large(limit: usize) -> Self {
        Self::new(ErrorCode::TooLarge, format!("the frame is over the limit of {limit} bytes"))
    }

    /// Too fast; try again after `retry_after` milliseconds.
    pub fn rate_limited(retry_after: u64) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(ErrorCode::RateLimited, "too many frames")
        }
    }

    /// Not now; try again after `retry_after` milliseconds.
    pub fn unavailable(message: impl Into<String>, retry_after: u64) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(ErrorCode::Unavailable, message) }
    }
}

/// Why the service ends a session, as a WebSocket close code (RFC 6455, 7.4: 4000–4999 are the application's).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// 1012: this gateway is going away; reconnect with jitter. The reason may hold a `retryAfter` hint.
    ServiceRestart,
    /// 1013: the gateway can't serve the session now; try again later.
    TryAgainLater,
    /// 4400: protocol abuse.
    Abuse,
    /// 4401: not authenticated, or the token has expired.
    Unauthenticated,
    /// 4408: no sign of life, or the client does not read.
    Idle,
    /// 4409: a newer session of the same device took over.
    Replaced,
    /// 4413: a frame far over the size limit.
    TooLarge,
    /// 4429: over the rate limit for long.
    RateLimited,
}

impl CloseCode {
    /// The number on the wire.
    pub fn code(self) -> u16 {
        match self {
            Self::ServiceRestart => 1012,
            Self::TryAgainLater => 1013,
            Self::Abuse => 4400,
            Self::Unauthenticated => 4401,
            Self::Idle => 4408,
            Self::Replaced => 4409,
            Self::TooLarge => 4413,
            Self::RateLimited => 4429,
        }
    }
}
