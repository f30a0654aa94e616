//! Tests: numbers that make no sense are refused at once, on the command line as in the configuration file.

use burn_frontier::device;
use clap::Parser;

use crate::options::Options;
use crate::plan;

/// What nothing can be as large as, and what no size can be multiplied with.
const ABSURD: [&str; 4] = [
    "1000000000000000",
    "4611686018427387904",
    "9223372036854775807",
    "18446744073709551615",
];

/// Flags that count something, and what each is called in a refusal.
const COUNTS: [(&str, &str); 12] = [
    ("--layers", "layers"),
    ("--hidden", "hidden"),
    ("--heads", "heads"),
    ("--kv-heads", "key and value"),
    ("--vocabulary", "vocabulary"),
    ("--sequence", "sequence"),
    ("--tp", "tp"),
    ("--pp", "pp"),
    ("--dp", "dp"),
    ("--micro-batch", "micro-batch"),
    ("--global-batch", "global batch"),
    ("--steps", "steps"),
];

fn parse(arguments: &[&str]) -> Options {
    Options::try_parse_from([&["gpt_1t"], arguments].concat()).unwrap()
}

/// What a run with these arguments is refused with.
fn refusal(arguments: &[&str]) -> Option<String> {
    refusal_of(&parse(arguments))
}

fn refusal_of(options: &Options) -> Option<String> {
    let check = || {
        options.check_numbers()?;
        let settings = options.settings()?;
        let cpu = device::choose(Some("cpu"))?;
        settings.validate(&options.model(Some(256))?, &cpu)
    };
    check().err().map(|error| error.to_string())
}

/// What a plan with these arguments is refused with.
fn refusal_of_plan(arguments: &[&str]) -> Option<String> {
    let options = parse(&[&["--plan"], arguments].concat());
    let check = || {
        options.check_numbers()?;
        plan::report(&options, options.model(None)?)
    };
    check().err().map(|error| error.to_string())
}

#[test]
fn absurd_counts_are_refused_by_name_in_a_run_and_in_a_plan() {
    for (flag, name) in COUNTS {
        for value in ABSURD {
            if flag != "--vocabulary" {
                let error = refusal(&[flag, value]).unwrap_or_else(|| panic!("{flag} {value}"));
                assert!(
                    error.contains(value) || error.contains(name),
                    "{flag} {value}: {error}"
                );
            }
            if flag != "--steps" {
                let error = refusal_of_plan(&[flag, value]);
                let error = error.unwrap_or_else(|| panic!("--plan {flag} {value}"));
                assert!(error.contains(value), "--plan {flag} {value}: {error}");
                let searched =
                    refusal_of_plan(&[flag, value, "--nodes", "4", "--machine", "frontier"]);
                assert!(searched.is_some(), "--plan --nodes 4 {flag} {value}");
            }
        }
    }
    assert!(refusal(&["--layers", "20000"]).unwrap().contains("20000"));
    for value in ABSURD {
        let error = refusal_of_plan(&["--nodes", value]).unwrap();
        assert!(error.contains(&format!("--nodes {value}")), "{error}");
        for chunks in [value, "100000"] {
            let kind = format!("interleaved:{chunks}");
            let error = refusal(&["--schedule", &kind]).unwrap();
            assert!(error.contains(chunks), "{kind}: {error}");
        }
    }
}

#[test]
fn numbers_that_are_absurd_only_together_are_refused() {
    let together: [&[&str]; 6] = [
        &["--tp", "1048576", "--pp", "1048576", "--dp", "1048576"],
        &["--layers", "8192", "--hidden", "1073741824"],
        &["--sequence", "1073741824", "--global-batch", "1073741824"],
        &["--steps", "9007199254740992", "--global-batch", "4096"],
        &["--dp", "1000000", "--global-batch", "1000000"],
        &["--global-batch", "100000000", "--micro-batch", "1"],
    ];
    for arguments in together {
        assert!(refusal(arguments).is_some(), "{arguments:?}");
    }
}

#[test]
fn what_is_only_large_is_planned_and_not_refused() {
    let large: [&[&str]; 4] = [
        &["--layers", "8192", "--hidden", "64"],
        &["--global-batch", "1000000"],
        &["--steps", "1000000000000"],
        &[
            "--timeout",
            "18446744073709551615",
            "--save-every",
            "18446744073709551615",
        ],
    ];
    for arguments in large {
        assert_eq!(refusal_of_plan(arguments), None, "{arguments:?}");
    }
}

#[test]
fn zero_is_refused_where_it_stands_for_nothing_and_taken_where_it_says_so() {
    for (flag, _) in COUNTS.into_iter().chain([
        ("--decay-steps", ""),
        ("--nodes", ""),
        ("--learning-rate", ""),
        ("--peak", ""),
    ]) {
        let error = refusal_of_plan(&[flag, "0"]).unwrap_or_else(|| panic!("{flag} 0"));
        assert!(error.starts_with(&format!("{flag} 0 ")), "{error}");
        assert!(error.contains("; use "), "{error}");
    }
    for flag in [
        "--dropout",
        "--weight-decay",
        "--clip",
        "--zero",
        "--seed",
        "--save-every",
        "--validate-every",
        "--keep",
        "--timeout",
    ] {
        assert_eq!(refusal(&[flag, "0"]), None, "{flag} 0");
    }
    let settings = parse(&[
        "--save-every",
        "0",
        "--validate-every",
        "0",
        "--timeout",
        "0",
    ]);
    let settings = settings.settings().unwrap();
    assert!(!(1..1000_u64).any(|step| step.is_multiple_of(settings.save_every)));
    assert!(!(1..1000_u64).any(|step| step.is_multiple_of(settings.validate_every)));
    assert_eq!(settings.timeout, std::time::Duration::MAX);
}

#[test]
fn a_configuration_file_is_held_to_the_same_rules() {
    for (text, part) in [
        ("steps = 0", "--steps 0"),
        ("tp = 0", "--tp 0"),
        ("hidden = 4611686018427387904", "4611686018427387904"),
        ("global-batch = 1000000000000", "1000000000000"),
    ] {
        let options: Options = toml::from_str(text).unwrap();
        let error = refusal_of(&options).unwrap();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn help_says_what_zero_means() {
    use clap::CommandFactory;
    let help = Options::command().render_long_help().to_string();
    assert!(help.contains("every other number is above 0"), "{help}");
}
