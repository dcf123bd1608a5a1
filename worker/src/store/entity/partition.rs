//! How far a partition of `FRAMES` is applied: the fence against a second worker, and the outbox.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "partitions")]
#[allow(missing_docs)] // the fields without a line speak for themselves
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i32,
    /// When the stream was created that `applied` counts in, in nanoseconds since the Unix epoch, plus how often the
    /// stream has lost its newest frames and counted the same sequences again since.
    pub epoch: i64,
    /// The stream sequence of the last applied frame; 0 for none.
    pub applied: i64,
    /// When the newest applied frame came into the stream, in nanoseconds since the Unix epoch.
    pub seen_at: i64,
    /// When the last batch was applied, in milliseconds since the Unix epoch.
    pub moved_at: i64,
    /// The events of the last applied batch, as JSON: published again by whoever finds that batch redelivered.
    pub events: String,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
#[allow(missing_docs)] // sea-orm asks for it; no relation is used
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
