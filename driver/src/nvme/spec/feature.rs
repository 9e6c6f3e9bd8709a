//! Features: their identifiers, names and the fields of their values (Base 2.0c §5.27.1).

/// A field of a feature's dword.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureField {
    /// Its name, with its unit.
    pub name: &'static str,
    /// Its lowest bit.
    pub shift: u32,
    /// How many bits it has.
    pub bits: u32,
}

impl FeatureField {
    /// The largest value it holds.
    pub const fn max(&self) -> u32 {
        if self.bits == 32 { u32::MAX } else { (1 << self.bits) - 1 }
    }

    /// Its value in a dword.
    pub const fn get(&self, dword: u32) -> u32 {
        dword >> self.shift & self.max()
    }

    /// A dword with another value of it.
    ///
    /// # Panics
    ///
    /// When the value is larger than the field.
    pub const fn set(&self, dword: u32, value: u32) -> u32 {
        assert!(value <= self.max(), "larger than the field");
        dword & !(self.max() << self.shift) | value << self.shift
    }
}

/// A feature whose value is one dword.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Feature Identifier.
    pub id: u8,
    /// Its name.
    pub name: &'static str,
    /// The fields of its value.
    pub fields: &'static [FeatureField],
    /// The fields that say which of several values is meant: Get Features has them in its dword 11.
    pub selectors: &'static [&'static str],
    /// Whether each namespace has a value of its own.
    pub of_namespace: bool,
    /// Whether it can be set; what cannot is the driver's own or only told.
    pub settable: bool,
}

const fn field(name: &'static str, shift: u32, bits: u32) -> FeatureField {
    FeatureField { name, shift, bits }
}

const fn feature(id: u8, name: &'static str, fields: &'static [FeatureField]) -> Feature {
    Feature { id, name, fields, selectors: &[], of_namespace: false, settable: true }
}

/// The features with a value of one dword, by identifier. Those with a data structure have functions of
/// their own.
pub const FEATURES: &[Feature] = &[
    feature(
        0x01,
        "arbitration",
        &[
            field("burst_log2", 0, 3),
            field("low_weight_minus_1", 8, 8),
            field("medium_weight_minus_1", 16, 8),
            field("high_weight_minus_1", 24, 8),
        ],
    ),
    feature(0x02, "power-state", &[field("state", 0, 5), field("workload_hint", 5, 3)]),
    Feature {
        selectors: &["sensor", "under"],
        ..feature(
            0x04,
            "temperature-threshold",
            &[field("kelvin", 0, 16), field("sensor", 16, 4), field("under", 20, 2)],
        )
    },
    Feature {
        of_namespace: true,
        ..feature(
            0x05,
            "error-recovery",
            &[field("time_limit_100ms", 0, 16), field("deallocated_error", 16, 1)],
        )
    },
    feature(0x06, "write-cache", &[field("enabled", 0, 1)]),
    Feature {
        settable: false,
        ..feature(
            0x07,
            "number-of-queues",
            &[field("submission_minus_1", 0, 16), field("completion_minus_1", 16, 16)],
        )
    },
    feature(
        0x08,
        "interrupt-coalescing",
        &[field("threshold_minus_1", 0, 8), field("time_100us", 8, 8)],
    ),
    Feature {
        selectors: &["vector"],
        ..feature(
            0x09,
            "interrupt-vector",
            &[field("vector", 0, 16), field("coalescing_disabled", 16, 1)],
        )
    },
    feature(0x0a, "write-atomicity", &[field("disable_normal", 0, 1)]),
    feature(
        0x0b,
        "async-events",
        &[
            field("smart", 0, 8),
            field("namespace_attribute", 8, 1),
            field("firmware_activation", 9, 1),
            field("telemetry", 10, 1),
            field("ana_change", 11, 1),
            field("zone_descriptor_changed", 27, 1),
        ],
    ),
    feature(
        0x10,
        "thermal-management",
        &[field("heavy_kelvin", 0, 16), field("light_kelvin", 16, 16)],
    ),
    feature(0x11, "non-operational-power", &[field("permissive", 0, 1)]),
    feature(0x17, "sanitize-config", &[field("no_deallocate_warns", 0, 1)]),
    feature(0x80, "software-progress", &[field("pre_boot_loads", 0, 8)]),
    Feature {
        of_namespace: true,
        ..feature(
            0x82,
            "reservation-mask",
            &[
                field("registration_preempted", 1, 1),
                field("released", 2, 1),
                field("preempted", 3, 1),
            ],
        )
    },
    Feature {
        of_namespace: true,
        ..feature(0x83, "reservation-persistence", &[field("through_power_loss", 0, 1)])
    },
    Feature { of_namespace: true, ..feature(0x84, "write-protection", &[field("state", 0, 3)]) },
];

/// Autonomous Power State Transition: the feature's identifier.
pub const APST: u8 = 0x0c;
/// Timestamp.
pub const TIMESTAMP: u8 = 0x0e;
/// Host Behavior Support.
pub const HOST_BEHAVIOR: u8 = 0x16;
/// Flexible Data Placement.
pub const FDP: u8 = 0x1d;
/// Host Identifier.
pub const HOST_ID: u8 = 0x81;
/// Volatile Write Cache.
pub const WRITE_CACHE: u8 = 0x06;

/// Which value Get Features gives (Base 2.0c figure 192).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// The one in force.
    Current,
    /// What it is when nothing was saved.
    Default,
    /// What it becomes at the next reset.
    Saved,
    /// Not a value: bit 0 saveable, bit 1 of each namespace, bit 2 changeable.
    Capabilities,
}

impl Select {
    /// Its bits in dword 10.
    pub const fn bits(self) -> u32 {
        (match self {
            Self::Current => 0,
            Self::Default => 1,
            Self::Saved => 2,
            Self::Capabilities => 3,
        }) << 8
    }
}

impl Feature {
    /// The feature of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        FEATURES.iter().find(|feature| feature.name == name)
    }

    /// Its field of that name.
    pub fn field(&self, name: &str) -> Option<&'static FeatureField> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// Its fields with their values in `dword`.
    pub fn decode(&self, dword: u32) -> impl Iterator<Item = (&'static str, u32)> {
        self.fields.iter().map(move |field| (field.name, field.get(dword)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_in_order_and_their_fields_do_not_overlap() {
        assert!(FEATURES.is_sorted_by(|a, b| a.id < b.id));
        for feature in FEATURES {
            let mut taken = 0u32;
            for field in feature.fields {
                let mask = field.set(0, field.max());
                assert_eq!(taken & mask, 0, "{} {}", feature.name, field.name);
                taken |= mask;
                assert_eq!(field.get(u32::MAX), field.max());
                assert_eq!(field.get(field.set(u32::MAX, 0)), 0);
            }
            assert!(feature.selectors.iter().all(|name| feature.field(name).is_some()));
        }
    }

    /// Base 2.0c figures 290 to 330, the dwords as the specification draws them.
    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        for (name, dword, values) in [
            ("arbitration", 0x0403_0207, &[7, 2, 3, 4][..]),
            ("power-state", 0b010_00011, &[3, 2]),
            ("temperature-threshold", 0x0015_0157, &[0x157, 5, 1]),
            ("error-recovery", 0x0001_00ff, &[0xff, 1]),
            ("write-cache", 1, &[1]),
            ("interrupt-coalescing", 0x0a07, &[7, 10]),
            ("interrupt-vector", 0x0001_0003, &[3, 1]),
            ("async-events", 0x0800_0d1f, &[0x1f, 1, 0, 1, 1, 1]),
            ("thermal-management", 0x0155_0166, &[0x166, 0x155]),
            ("reservation-mask", 0b1010, &[1, 0, 1]),
            ("write-protection", 0b011, &[3]),
        ] {
            let feature = Feature::named(name).unwrap();
            let decoded: Vec<u32> = feature.decode(dword).map(|(_, value)| value).collect();
            assert_eq!(decoded, values, "{name}");
        }
    }
}
