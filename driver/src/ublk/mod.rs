//! The server: any [`BlockDevice`](crate::BlockDevice) becomes `/dev/ublkbN`.
