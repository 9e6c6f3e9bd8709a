//! Block devices driven from userspace.
