// A C++ client that gSOAP generated from the served WSDL, strict in what it reads, and the application that is called
// back. Arguments and output: see test_interop.py.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <functional>
#include <iostream>
#include <mutex>
#include <netinet/in.h>
#include <string>
#include <thread>
#include <vector>

#include "TerminalStatusBinding.nsmap"
#include "soapTerminalStatusBindingProxy.h"
#include "soapTerminalStatusNotificationBindingService.h"
#include "soapTerminalStatusNotificationManagerBindingProxy.h"

static const auto WAIT = std::chrono::seconds(20);
static std::mutex mutex;
static std::condition_variable came;
static std::deque<std::string> calls;

static std::string quoted(const std::string &text) {
    std::string out = "\"";
    for (char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += c;
    }
    return out + "\"";
}

static std::string listed(const std::vector<std::string> &texts) {
    std::string out = "[";
    for (const auto &text : texts) out += (out.size() > 1 ? ", " : "") + quoted(text);
    return out + "]";
}

static std::string word(struct soap *soap, types__Status status) {
    return quoted(soap_types__Status2s(soap, status));
}

static void say(const std::string &what, const std::string &value) {
    std::cout << "[" << quoted(what) << ", " << value << "]" << std::endl;
}

static void heard(const std::string &what, const std::string &value) {
    std::lock_guard<std::mutex> lock(mutex);
    calls.push_back("[" + quoted(what) + ", " + value + "]");
    came.notify_one();
}

static void next_call() {
    std::unique_lock<std::mutex> lock(mutex);
    if (!came.wait_for(lock, WAIT, [] { return !calls.empty(); })) {
        std::cerr << "no callback came" << std::endl;
        std::_Exit(1);
    }
    std::cout << calls.front() << std::endl;
    calls.pop_front();
}

class Application : public TerminalStatusNotificationBindingService {
  public:
    Application() : TerminalStatusNotificationBindingService(SOAP_XML_STRICT, SOAP_XML_DEFAULTNS) {}

    TerminalStatusNotificationBindingService *copy() override { return nullptr; }

    int statusNotification(notify__statusNotification *call, notify__statusNotificationResponse &) override {
        std::string changes;
        for (const auto *one : call->terminalStatus)
            changes += (changes.empty() ? "[" : ", [") + quoted(one->address) + ", " + word(soap, one->currentStatus) + "]";
        heard("statusNotification", "[" + quoted(call->correlator) + ", [" + changes + "]]");
        return SOAP_OK;
    }

    int statusError(notify__statusError *call, notify__statusErrorResponse &) override {
        heard("statusError", "[" + quoted(call->correlator) + ", " + (call->address ? quoted(*call->address) : "null")
            + ", " + quoted(call->reason->messageId) + ", " + quoted(call->reason->text) + ", "
            + listed(call->reason->variables) + "]");
        return SOAP_OK;
    }

    int statusEnd(notify__statusEnd *call, notify__statusEndResponse &) override {
        heard("statusEnd", quoted(call->correlator));
        return SOAP_OK;
    }
};

template <class Exception> static std::string fields(const char *element, const Exception *found) {
    return "[" + quoted(element) + ", " + quoted(found->messageId) + ", " + quoted(found->text) + ", "
        + listed(found->variables) + "]";
}

static void done(struct soap *soap, int result) {
    if (result != SOAP_OK) {
        soap_print_fault(soap, stderr);
        std::_Exit(1);
    }
}

static void fault_of(const char *what, struct soap *soap, int result) {
    if (result == SOAP_OK || !soap->fault || !soap->fault->detail) return done(soap, result == SOAP_OK ? SOAP_ERR : result);
    if (auto *policy = soap->fault->detail->common__PolicyException_)
        say(what, fields("PolicyException", policy));
    else if (auto *service = soap->fault->detail->common__ServiceException_)
        say(what, fields("ServiceException", service));
}

template <class Proxy> static void prepare(Proxy &proxy, const std::string &endpoint) {
    proxy.soap_endpoint = endpoint.c_str();
    soap_set_imode(proxy.soap, SOAP_XML_STRICT);
    proxy.soap->recv_timeout = proxy.soap->connect_timeout = 20;
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    const std::string base = argv[1], name = argv[4];
    const std::string status_url = base + "/TerminalStatus", manager_url = base + "/TerminalStatusNotificationManager";

    Application application;
    if (!soap_valid_socket(soap_bind(application.soap, "127.0.0.1", 0, 100))) done(application.soap, SOAP_ERR);
    sockaddr_in bound{};
    socklen_t size = sizeof bound;
    getsockname(application.soap->master, reinterpret_cast<sockaddr *>(&bound), &size);
    std::thread([&application] {
        // The gateway checks the endpoint by a connection without a request: that takes one more turn of the loop.
        while (soap_valid_socket(soap_accept(application.soap))) {
            application.serve();
            application.destroy();
        }
    }).detach();
    const std::string endpoint = "http://127.0.0.1:" + std::to_string(ntohs(bound.sin_port)) + "/callback";

    TerminalStatusBindingProxy status;
    TerminalStatusNotificationManagerBindingProxy manager;
    prepare(status, status_url);
    prepare(manager, manager_url);
    // gSOAP forgets the credentials with each call.
    auto signed_in = [argv](struct soap *soap) {
        soap->userid = argv[2];
        soap->passwd = argv[3];
    };

    auto get = [&](const char *address, status__getStatusResponse &answer) {
        status__getStatus ask;
        ask.address = address;
        signed_in(status.soap);
        return status.getStatus(&ask, answer);
    };
    auto get_group = [&](const std::vector<std::string> &addresses, status__getStatusForGroupResponse &answer) {
        status__getStatusForGroup ask;
        ask.addresses = addresses;
        signed_in(status.soap);
        return status.getStatusForGroup(&ask, answer);
    };
    auto start = [&](int number, const char *address, bool check, int count) {
        common__SimpleReference reference;
        reference.endpoint = endpoint;
        reference.interfaceName = "TerminalStatusNotification";
        reference.correlator = name + "-" + std::to_string(number);
        common__TimeMetric frequency, duration;
        frequency.metric = common__TimeMetrics__Second;
        frequency.units = 0;
        duration.metric = common__TimeMetrics__Hour;
        duration.units = 1;
        manager__startNotification ask;
        ask.reference = &reference;
        ask.addresses = {address};
        ask.criteria = {types__Status__Reachable, types__Status__Busy};
        ask.checkImmediate = check;
        ask.frequency = &frequency;
        ask.duration = &duration;
        ask.count = count ? &count : nullptr;
        manager__startNotificationResponse answer;
        signed_in(manager.soap);
        return manager.startNotification(&ask, answer);
    };
    auto end = [&](int number) {
        manager__endNotification ask;
        ask.correlator = name + "-" + std::to_string(number);
        manager__endNotificationResponse answer;
        signed_in(manager.soap);
        return manager.endNotification(&ask, answer);
    };

    status__getStatusResponse one;
    done(status.soap, get("sip:alice@example.com", one));
    say("getStatus", word(status.soap, one.result));

    status__getStatusForGroupResponse all;
    done(status.soap, get_group({"sip:alice@example.com", "sip:bob@example.com", "sip:answer-403@example.com",
        "sip:silent@example.com"}, all));
    std::string results;
    for (const auto *each : all.result) {
        const auto *error = each->errorInformation;
        results += (results.empty() ? "[" : ", [") + quoted(each->address) + ", "
            + quoted(soap_types__RetrievalStatus2s(status.soap, each->reportStatus)) + ", "
            + (each->currentStatus ? word(status.soap, *each->currentStatus) : "null") + ", "
            + (error ? quoted(error->messageId) + ", " + listed(error->variables) : "null, []") + "]";
    }
    say("getStatusForGroup", "[" + results + "]");
    fault_of("fault of getStatus", status.soap, get("sip:answer-403@example.com", one));
    fault_of("fault of getStatusForGroup", status.soap, get_group({"alice"}, all));

    done(manager.soap, start(1, "sip:alice@example.com", true, 1));
    say("startNotification", "null");
    next_call();
    next_call();
    done(manager.soap, start(2, "sip:terminated-noresource@example.com", true, 0));
    next_call();
    done(manager.soap, start(3, "sip:carol@example.com", false, 0));
    fault_of("fault of startNotification", manager.soap, start(3, "sip:carol@example.com", false, 0));
    done(manager.soap, end(3));
    say("endNotification", "null");
    fault_of("fault of endNotification", manager.soap, end(3));
    std::cout.flush();
    std::_Exit(0);
}
