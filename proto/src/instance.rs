//! A name for one running program.

/// The host's name, so that people know which, and a random part, so that no two starts share a name. `program` stands
/// in for a host without a name.
pub fn name(program: &str) -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| program.into());
    let host: String = host.chars().filter(char::is_ascii).take(48).collect();
    format!("{host}-{:08x}", fastrand::u32(..))
}
