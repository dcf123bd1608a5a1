//! What buckets hold: who is online, and through which gateway.

use async_nats::jetstream::{kv, stream::RawMessageErrorKind};
use futures::StreamExt;

use super::{DirectGet, EventLog, Stored};
use crate::error::Error;

/// A key of a bucket.
#[derive(Debug, Clone)]
pub struct BucketKey {
    /// The key.
    pub key: String,
    /// The revision of its value, or of its removal.
    pub revision: u64,
    /// Whether it was removed.
    pub is_removed: bool,
}

/// The most subjects of which the broker returns the last message at once (ADR-31).
const MULTI_LAST: usize = 1024;

impl EventLog {
    /// What a bucket has under these keys, which may hold wildcards. Removed keys show while their mark lasts.
    ///
    /// # Errors
    /// If the broker fails.
    pub async fn last_of_bucket(
        &self,
        bucket: &str,
        keys: &[String],
    ) -> Result<Vec<BucketKey>, Error> {
        let prefix = format!("$KV.{bucket}.");
        let subjects: Vec<String> = keys.iter().map(|key| format!("{prefix}{key}")).collect();
        let request =
            DirectGet { multi_last: &subjects, batch: Some(MULTI_LAST), ..DirectGet::default() };
        let found = self.reads.get(&format!("KV_{bucket}"), &request).await?;
        let key = |stored: Stored| {
            let key = stored.subject.strip_prefix(&prefix)?.to_owned();
            Some(BucketKey { key, revision: stored.sequence, is_removed: stored.is_removed })
        };
        Ok(found.into_iter().filter_map(key).collect())
    }

    /// The same for a wildcard that matches any number of keys.
    ///
    /// # Errors
    /// If the broker fails.
    pub async fn keys_of_bucket(
        &self,
        bucket: &kv::Store,
        filter: &str,
    ) -> Result<Vec<BucketKey>, Error> {
        let subjects = bucket.stream.info_with_subjects(format!("{}{filter}", bucket.prefix)).await;
        let mut subjects = subjects.map_err(Error::broker("list a bucket's keys"))?;
        let mut names = Vec::new();
        while let Some(subject) = subjects.next().await {
            let (subject, _) = subject.map_err(Error::broker("list a bucket's keys"))?;
            names.extend(subject.strip_prefix(&bucket.prefix).map(ToOwned::to_owned));
        }
        let mut keys = Vec::with_capacity(names.len());
        for some in names.chunks(MULTI_LAST / 2) {
            keys.extend(self.last_of_bucket(&bucket.name, some).await?);
        }
        Ok(keys)
    }

    /// What a bucket has under keys that match the filter, as its leader knows it: a replica that lags would show a key
    /// that is removed, or not show one that is there. For a few keys; each takes a request.
    ///
    /// # Errors
    /// If the broker fails.
    pub async fn newest_of_bucket(
        &self,
        bucket: &kv::Store,
        filter: &str,
    ) -> Result<Vec<BucketKey>, Error> {
        let subject = format!("{}{filter}", bucket.prefix);
        let (mut keys, mut from) = (Vec::new(), 1);
        loop {
            let next = bucket.stream.raw_message_builder().sequence(from);
            let found = match next.next_by_subject(subject.as_str()).send().await {
                Ok(found) => found,
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
                    return Ok(keys);
                }
                Err(error) => return Err(Error::broker("read a bucket's keys")(error)),
            };
            from = found.sequence + 1;
            if let Some(key) = found.subject.strip_prefix(&bucket.prefix) {
                let is_removed = REMOVALS.iter().any(|name| found.headers.get(*name).is_some());
                keys.push(BucketKey { key: key.to_owned(), revision: found.sequence, is_removed });
            }
        }
    }
}

/// The headers of a message that marks the end of its key: its removal, or the end of its time.
pub(super) const REMOVALS: [&str; 2] = ["KV-Operation", "Nats-Marker-Reason"];
