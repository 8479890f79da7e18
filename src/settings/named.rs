//! Enums whose variants have names.

/// Declares an enum with a name for each variant, the list `ALL` of its variants in their order, and `name`.
macro_rules! named {
    (
        $(#[$meta:meta])* $vis:vis enum $type:ident { $($(#[$variant_meta:meta])* $variant:ident = $name:literal,)+ }
    ) => {
        $(#[$meta])*
        $vis enum $type { $($(#[$variant_meta])* $variant,)+ }

        impl $type {
            /// All variants, in their order.
            pub(crate) const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// The name in metrics, `/status`, letters and payloads.
            #[must_use]
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

pub(crate) use named;
