//! Named steps of the work, at which a fault test ends this worker or spoils a frame. Without the feature `failpoints`,
//! which only the tests turn on, nothing is ever asked and nothing ever happens.
//!
//! The variable `FAILPOINTS` says what shall happen, as the crate `fail` reads it: `after-commit=2*off->return` ends the
//! process the third time it has committed, `poison=return(bad-)` keeps messages whose key begins with `bad-` from ever
//! being applied.

use herald_proto::wire::Command;

/// Takes what `FAILPOINTS` says, for as long as the value lives.
pub fn setup() -> impl Sized {
    #[cfg(feature = "failpoints")]
    fail::FailScenario::setup()
}

/// Ends the process as SIGKILL would, if a test wants it to end at this step.
pub(crate) fn step(name: &str) {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(name, |_| -> () { std::process::abort() });
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
}

/// Whether a test wants this request never to be applied.
pub(crate) fn is_poisoned(command: &Command) -> bool {
    #[cfg(feature = "failpoints")]
    fail::fail_point!("poison", |prefix| match &command.request {
        herald_proto::frame::Request::New(new) =>
            prefix.is_some_and(|prefix| new.client_message_id.as_str().starts_with(&prefix)),
        _ => false,
    });
    let _ = command;
    false
}
