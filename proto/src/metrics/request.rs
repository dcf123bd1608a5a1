//! Labels that both programs tell requests apart by.

use crate::{ErrorCode, frame::Request};

crate::labels! {
    /// What a client asks for.
    pub enum RequestKind = "kind" {
        /// A message.
        New = "new",
        /// A receipt of delivery.
        Dlvrd = "dlvrd",
        /// A read receipt.
        Read = "read",
        /// A message taken back.
        Delete = "delete",
    }

    /// What a request was answered with.
    pub enum AnswerCode = "code" {
        /// No error.
        Ok = "ok",
        /// An error, by its code.
        BadRequest = "bad_request",
        /// Likewise.
        NotFound = "not_found",
        /// Likewise.
        Forbidden = "forbidden",
        /// Likewise.
        Conflict = "conflict",
        /// Likewise.
        TooLarge = "too_large",
        /// Likewise.
        RateLimited = "rate_limited",
        /// Likewise.
        Unavailable = "unavailable",
    }
}

impl From<&Request> for RequestKind {
    fn from(request: &Request) -> Self {
        match request {
            Request::New(_) => Self::New,
            Request::Dlvrd(_) => Self::Dlvrd,
            Request::Read(_) => Self::Read,
            Request::Delete(_) => Self::Delete,
        }
    }
}

impl From<ErrorCode> for AnswerCode {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::BadRequest => Self::BadRequest,
            ErrorCode::NotFound => Self::NotFound,
            ErrorCode::Forbidden => Self::Forbidden,
            ErrorCode::Conflict => Self::Conflict,
            ErrorCode::TooLarge => Self::TooLarge,
            ErrorCode::RateLimited => Self::RateLimited,
            ErrorCode::Unavailable => Self::Unavailable,
        }
    }
}
