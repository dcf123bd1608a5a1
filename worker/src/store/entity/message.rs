//! A message. A deleted one keeps its row, without its text and attachments, so that ids stay without holes.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "messages")]
#[allow(missing_docs)] // the fields without a line are the protocol's own
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub chat_id: i64,
    #[sea_orm(primary_key, auto_increment = false)]
    pub message_id: i64,
    /// Whether the chat's member A sent it.
    pub from_a: bool,
    pub sender: String,
    pub client_message_id: String,
    /// A hash of recipient and content: tells a repeat from a conflict, also after the content is gone.
    pub digest: i64,
    /// The sender's clock, in milliseconds since the Unix epoch.
    pub sent_at: i64,
    /// The service's clock, in milliseconds since the Unix epoch.
    pub stored_at: i64,
    pub body: Option<String>,
    /// JSON.
    pub attachments: Option<String>,
    pub deleted: bool,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
#[allow(missing_docs)] // sea-orm asks for it; no relation is used
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
