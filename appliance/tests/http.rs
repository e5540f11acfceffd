//! The HTTP API as a browser and a program use it.

mod support;

use pollux::app::{Appliance, StartError};
use pollux::config::StoreBackend;
use serde_json::{Value, json};
use support::{Client, config, enrolled, start, stranger};
use tonic::Code;

#[tokio::test]
async fn logging_in_and_what_each_role_may_do() {
    let setup = start().await;
    let admin = Client::admin(&setup.appliance);
    let anyone = Client::anonymous(&setup.appliance);
    let first = setup.appliance.first_login.clone().expect("made at the first start");
    let wrong = json!({"user": first.user, "password": "not the password"});
    let (status, body) = anyone.call("POST", "/api/login", Some(wrong)).await;
    assert_eq!((status, body["error"]["code"].as_str()), (401, Some("unauthenticated")));
    assert!(body["error"]["advice"].is_string());

    let right = json!({"user": first.user, "password": first.password});
    let response = anyone.request("POST", "/api/login").json(&right).send().await.expect("answer");
    let cookie = response.headers()["set-cookie"].to_str().expect("cookie").to_owned();
    for attribute in ["HttpOnly", "Secure", "SameSite=Strict"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    let cookie = cookie.split(';').next().expect("cookie").to_owned();
    let with_cookie = |method: &str, path: &str| anyone.request(method, path).header("cookie", &cookie);
    let me: Value = with_cookie("GET", "/api/me").send().await.expect("answer").json().await.expect("JSON");
    assert_eq!((me["user"].as_str(), me["role"].as_str()), (Some("admin"), Some("admin")));
    let foreign = with_cookie("POST", "/api/codes").header("origin", "https://evil.example").json(&json!({}));
    assert_eq!(foreign.send().await.expect("answer").status(), 403);
    with_cookie("POST", "/api/logout").send().await.expect("answer");
    assert_eq!(with_cookie("GET", "/api/me").send().await.expect("answer").status(), 401);

    for (name, role) in [("hanna", "helpdesk"), ("mia", "mai")] {
        admin.post("/api/users", json!({"name": name, "role": role, "password": "long enough"})).await;
    }
    let login = async |name: &str| {
        let reply = anyone.post("/api/login", json!({"user": name, "password": "long enough"})).await;
        anyone.with_token(reply["token"].as_str().expect("token"))
    };
    let (helpdesk, mai) = (login("hanna").await, login("mia").await);
    enrolled(&setup.appliance, "A").await;
    for (client, path, expected) in [
        (&anyone, "/api/phones", 401),
        (&anyone, "/api/live", 401),
        (&helpdesk, "/api/phones", 200),
        (&helpdesk, "/api/phones/A/log", 200),
        (&helpdesk, "/api/users", 403),
        (&helpdesk, "/api/codes", 403),
        (&mai, "/api/phones", 200),
        (&mai, "/api/phones/A/log", 403),
        (&mai, "/api/phones/A/files", 403),
        (&admin, "/api/users", 200),
    ] {
        assert_eq!(client.call("GET", path, None).await.0, expected, "{path}");
    }
    // A changed role ends the login that was made under the old one.
    assert_eq!(admin.call("PATCH", "/api/users/mia", Some(json!({"role": "helpdesk"}))).await.0, 200);
    assert_eq!(mai.call("GET", "/api/me", None).await.0, 401);
    let (status, body) = admin.call("DELETE", "/api/users/admin", None).await;
    assert_eq!((status, body["error"]["code"].as_str()), (409, Some("conflict")));
    setup.appliance.shutdown().await;
}

#[tokio::test]
async fn guessing_passwords_is_slowed() {
    let setup = start().await;
    let anyone = Client::anonymous(&setup.appliance);
    let mut last = (0, Value::Null);
    for _ in 0..6 {
        last = anyone.call("POST", "/api/login", Some(json!({"user": "admin", "password": "guess guess"}))).await;
    }
    assert_eq!((last.0, last.1["error"]["code"].as_str()), (429, Some("throttled")));
    setup.appliance.shutdown().await;
}

#[tokio::test]
async fn an_enrolment_code_lets_one_phone_in() {
    let setup = start().await;
    let admin = Client::admin(&setup.appliance);
    let code = admin.new_code().await;
    let mut first = stranger(&setup.appliance, "FIRST");
    let mut second = stranger(&setup.appliance, "SECOND");
    assert!(first.register(&code).await.expect("registered"));
    // It did not hear the answer and asks again.
    assert!(first.register(&code).await.expect("registered"));
    let reused = second.register(&code).await.expect_err("refused");
    assert_eq!(reused.code(), Code::FailedPrecondition, "{reused}");
    let wrong = second.register("AAAA-BBBB-CCCC").await.expect_err("refused");
    assert_eq!(wrong.code(), Code::PermissionDenied, "{wrong}");
    let codes = admin.get("/api/codes").await;
    assert_eq!(codes["codes"][0]["state"], "used");
    assert!(!codes.to_string().contains(&code), "a code is shown once");
    assert_eq!(admin.get("/api/phones").await["phones"].as_array().map(Vec::len), Some(1));
    assert_eq!(admin.get("/api/phones/FIRST").await["standing"], "released");
    setup.appliance.shutdown().await;
}

#[tokio::test]
async fn who_uses_a_phone_is_said_and_shown_with_it() {
    let setup = start().await;
    let admin = Client::admin(&setup.appliance);
    enrolled(&setup.appliance, "A").await;
    assert_eq!(admin.get("/api/phones/A").await["assignment"], json!({"person": "", "department": "", "carrier": ""}));
    let said = json!({"person": "Ada", "department": "Sales", "carrier": "Aurora"});
    assert_eq!(admin.call("PUT", "/api/phones/A/assignment", Some(said.clone())).await, (200, said.clone()));
    assert_eq!(admin.get("/api/phones/A").await["assignment"], said);
    assert_eq!(admin.get("/api/phones").await["phones"][0]["assignment"], said);
    let long = json!({"person": "a".repeat(101)});
    assert_eq!(admin.call("PUT", "/api/phones/A/assignment", Some(long)).await.0, 400);
    assert_eq!(admin.get("/api/phones/A").await["assignment"], said);
    setup.appliance.shutdown().await;
}

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong() {
    let setup = start().await;
    let admin = Client::admin(&setup.appliance);
    enrolled(&setup.appliance, "A").await;
    for (method, path, body, status, text) in [
        ("GET", "/api/nonsense", None, 404, "there is no /api/nonsense"),
        ("GET", "/api/phones/NOBODY", None, 404, "no phone NOBODY"),
        ("GET", "/api/phones/A/log?limit=x", None, 400, "limit"),
        ("GET", "/api/phones/A/files?path=relative", None, 400, "not absolute"),
        ("GET", "/api/phones/A/files?path=%2Fno%0Asuch", None, 404, "there is no /no\\nsuch"),
        ("GET", "/api/phones/A/files?path=%zz", None, 400, "hexadecimal"),
        ("GET", "/api/phones/A/files?position=99", None, 404, "ends at position"),
        ("POST", "/api/codes", Some(json!({"notes": 1})), 400, "notes"),
        ("POST", "/api/codes", Some(json!({"expires_in_hours": 0})), 400, "between"),
        ("POST", "/api/users", Some(json!({"name": "X", "role": "mai", "password": "long enough"})), 400, "lower-case"),
        ("POST", "/api/users", Some(json!({"name": "x", "role": "mai", "password": "short"})), 400, "at least 10"),
        ("POST", "/api/users", Some(json!({"name": "x", "role": "boss", "password": "long enough"})), 400, "boss"),
        ("GET", "/api/phones/A/twin/screen.png", None, 503, "does not run"),
        ("POST", "/api/phones/A/twin/start", None, 503, "no image's name"),
        ("POST", "/api/phones/A/twin/park", None, 409, "cannot be parked"),
        ("PUT", "/api/phones/A/drive", None, 503, "does not run"),
        ("DELETE", "/api/phones/A/drive", None, 409, "do not drive"),
        ("DELETE", "/api/phones/A/conflicts/5", None, 404, "no conflict 5"),
        ("POST", "/api/phones/A/prove", None, 503, "not connected"),
    ] {
        let (found, reply) = admin.call(method, path, body).await;
        let message = reply["error"]["message"].as_str().unwrap_or_default();
        assert!(found == status && message.contains(text), "{method} {path}: {found} {reply}");
    }
    setup.appliance.shutdown().await;
}

#[tokio::test]
async fn what_is_described_is_there_and_asks_for_a_login() {
    let setup = start().await;
    let anyone = Client::anonymous(&setup.appliance);
    let described = anyone.get("/api/openapi.json").await;
    let paths = described["paths"].as_object().expect("paths");
    assert!(paths.len() > 25);
    for (path, methods) in paths {
        let path = path.replace("{phone}", "x").replace("{name}", "x").replace("{id}", "1");
        for (method, operation) in methods.as_object().expect("methods") {
            let (status, body) = anyone.call(&method.to_uppercase(), &path, None).await;
            let public = operation["security"] == json!([{}]) || operation["security"] == json!([]);
            match (public, path.as_str()) {
                (false, "/api/logout") => assert_eq!(status, 204),
                (false, _) => assert_eq!(status, 401, "{method} {path}: {body}"),
                (true, _) => assert_ne!(status, 404, "{method} {path}"),
            }
        }
    }
    let page = anyone.request("GET", "/phones/anything").send().await.expect("answer");
    assert_eq!(page.headers()["content-type"], "text/html");
    assert!(page.headers().contains_key("content-security-policy"));
    setup.appliance.shutdown().await;
}

#[tokio::test]
async fn what_stands_in_the_way_of_a_start_is_said() {
    let setup = start().await;
    let message = |error: StartError| error.to_string();
    let refused = async |config| Appliance::start(config).await.err().map(message).expect("refused");

    let folder = tempfile::tempdir().expect("folder");
    let mut taken = config(folder.path(), StoreBackend::Memory);
    taken.http_listen = setup.appliance.http_address;
    let told = refused(taken).await;
    assert!(told.contains("another program has the port") && told.contains("the console"), "{told}");

    let told = refused(config(setup.data.path(), StoreBackend::Memory)).await;
    assert!(told.contains("another appliance runs"), "{told}");

    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("written");
    let told = refused(config(&file, StoreBackend::Memory)).await;
    assert!(told.contains("data folder") || told.contains("lock"), "{told}");

    // After all that, the same folder works.
    Appliance::start(config(folder.path(), StoreBackend::Memory)).await.expect("started").shutdown().await;
    setup.appliance.shutdown().await;
}
