//! What a container's image stands for. Nothing is pulled: an image is known by its name.

/// What becomes of a container of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Image {
    /// The kubelet cannot pull it: the tag is `missing`, or the registry's name ends in `.invalid` (reserved by
    /// RFC 2606, so no real registry has it).
    Absent(Absence),
    /// The kubelet does not even try: the name is none.
    Malformed,
    /// It runs for real, as a process of this machine.
    Program(&'static Program),
    /// It is taken to Running, and nothing happens in it.
    Simulated,
}

/// Why an image cannot be pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absence {
    Tag,
    Registry,
}

/// A program of the cache that stands for an image.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// Its file in the `bin` folder of the cache.
    pub(super) file: &'static str,
    /// Ports that it listens on, each named by an environment variable, with its default. Pods share the machine's
    /// loopback, so every process gets ports of its own.
    pub(super) ports: &'static [(&'static str, u16)],
}

static KARPENTER: Program =
    Program { file: "karpenter", ports: &[("METRICS_PORT", 8080), ("HEALTH_PROBE_PORT", 8081)] };

impl Image {
    /// Decides by the image's name, for example `public.ecr.aws/karpenter/controller:1.14.1@sha256:…`.
    pub(super) fn of(name: &str) -> Self {
        let name = name.split_once('@').map_or(name, |(name, _)| name);
        let (repository, tag) = match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            _ => (name, "latest"),
        };
        // A reference as the distribution specification has it, as far as people get it wrong.
        let of = |text: &str, more: &str| {
            text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        if !of(tag, "_.-") || !of(repository, "_.-/:") || repository.contains(|c: char| c.is_ascii_uppercase()) {
            return Self::Malformed;
        }
        let registry = repository.split_once('/').map_or("", |(registry, _)| registry);
        let host = registry.split_once(':').map_or(registry, |(host, _)| host);
        if host.rsplit('.').next() == Some("invalid") {
            Self::Absent(Absence::Registry)
        } else if tag == "missing" {
            Self::Absent(Absence::Tag)
        } else if repository.ends_with("karpenter/controller") {
            Self::Program(&KARPENTER)
        } else {
            Self::Simulated
        }
    }
}

/// The kubelet's words for a name that is none.
pub(super) fn malformed(image: &str) -> String {
    format!(
        "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": invalid reference format"
    )
}

impl Absence {
    /// The runtime's words for it.
    pub(super) fn message(self, image: &str) -> String {
        match self {
            Self::Tag => format!("failed to resolve image: {image}: not found"),
            Self::Registry => {
                format!("failed to resolve image: {image}: dial tcp: lookup of the registry: no such host")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_its_name() {
        assert_eq!(Image::of("public.ecr.aws/docker/library/busybox:stable"), Image::Simulated);
        assert_eq!(Image::of("localhost:5000/x"), Image::Simulated);
        for name in ["public.ecr.aws/x/y:no tag", "public.ecr.aws/X/y:1", "public.ecr.aws/x/y:", ""] {
            assert_eq!(Image::of(name), Image::Malformed, "{name}");
        }
        assert_eq!(Image::of("public.ecr.aws/x/y:missing"), Image::Absent(Absence::Tag));
        assert_eq!(Image::of("registry.invalid:5000/y:1"), Image::Absent(Absence::Registry));
        assert!(matches!(Image::of("public.ecr.aws/karpenter/controller:1.14.1@sha256:00"), Image::Program(_)));
    }
}
