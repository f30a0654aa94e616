//! What the library's words are called on the command line.

use burn_frontier::Error;

/// Phrases of a remedy that stand for a flag. `tp`, `pp` and `dp` are words of their own.
const PHRASES: [(&str, &str); 8] = [
    ("ZeRO ", "--zero "),
    ("the schedule ", "--schedule "),
    ("no sequence parallelism", "no --sequence-parallel"),
    ("a sequence that", "a --sequence that"),
    ("another precision", "another --precision"),
    ("another device", "another --device"),
    ("the device auto", "--device auto"),
    ("a smaller learning rate", "a smaller --learning-rate"),
];

/// A refusal of the library, with the flags of this program in what it advises. Whatever has a context names its flag there.
pub fn with_flags(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<Error>() {
        Some(Error::Config { what, remedy }) if error.chain().count() == 1 => {
            Error::config(what, in_flags(remedy)).into()
        }
        _ => error,
    }
}

fn in_flags(remedy: &str) -> String {
    let words = remedy.split(' ').map(|word| match word {
        "tp" | "pp" | "dp" => format!("--{word}"),
        _ => word.to_owned(),
    });
    let text = words.collect::<Vec<_>>().join(" ");
    let replaced = PHRASES.iter();
    replaced.fold(text, |text, (phrase, flag)| text.replace(phrase, flag))
}

#[cfg(test)]
mod tests {
    use burn_frontier::Layout;
    #[cfg(not(feature = "cuda"))]
    use burn_frontier::device;
    use burn_frontier::models::gpt::GptConfig;
    use burn_frontier::pipeline::micro_batches::micro_batches;
    use burn_frontier::pipeline::schedule::Kind;
    use burn_frontier::plan::Job;

    use super::*;

    fn said(error: Error) -> String {
        with_flags(error.into()).to_string()
    }

    #[test]
    fn what_the_library_refuses_is_said_with_the_flags_that_change_it() {
        let model = GptConfig::new(4, 120, 6, 100, 32);
        let refusal = |tp, pp| {
            let layout = Layout {
                tp,
                pp,
                ..Layout::single()
            };
            said(model.validate(&layout, true).unwrap_err())
        };
        assert!(refusal(4, 1).contains("use one of --tp 1, 2, 3, 6"));
        assert!(refusal(1, 5).contains("use --pp 4 or less"));
        let split = refusal(3, 1);
        for part in ["use a --sequence that is", "or no --sequence-parallel"] {
            assert!(split.contains(part), "{split}");
        }
        let deep = Job {
            schedule: Kind::Interleaved { chunks: 4 },
            ..Job::new(
                model,
                Layout {
                    pp: 2,
                    ..Layout::single()
                },
            )
        };
        let deep = said(deep.validate().unwrap_err());
        assert!(
            deep.contains("use --pp 1 or less, or --schedule 1f1b"),
            "{deep}"
        );
        let few = micro_batches(2, 1, 0, 4).unwrap_err();
        assert!(said(few).contains("--dp 2 or less"));
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_device_that_is_not_there_is_said_with_its_flag() {
        let error = said(device::choose(Some("cuda")).unwrap_err());
        assert!(error.contains("or use --device auto"), "{error}");
    }
}
