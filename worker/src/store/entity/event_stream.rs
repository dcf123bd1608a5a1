//! How far an event stream's ids have been given out: none may be given out twice, whatever the broker loses.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "event_streams")]
#[allow(missing_docs)] // the fields without a line speak for themselves
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i32,
    /// When the stream was created, in nanoseconds since the Unix epoch.
    pub created: i64,
    /// The highest id that JetStream has confirmed, as of about a second ago.
    pub high: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
#[allow(missing_docs)] // sea-orm asks for it; no relation is used
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
