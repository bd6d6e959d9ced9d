// One JSON object a line: what the launcher's helpers say on stdout.

#pragma once

#include <cstdio>
#include <string>

inline std::string quoted(const char *text) {
    std::string json = "\"";
    for (const char *at = text ? text : ""; *at; at++) {
        const unsigned char c = static_cast<unsigned char>(*at);
        if (c == '"' || c == '\\') {
            json += '\\';
            json += *at;
        } else if (c < 0x20 || c == 0x7f) {
            json += ' ';
        } else {
            json += *at;
        }
    }
    return json + '"';
}

// Text and numbers by name.
class Line {
  public:
    Line &text(const char *name, const std::string &value) { return raw(name, quoted(value.c_str())); }
    Line &number(const char *name, unsigned long long value) { return raw(name, std::to_string(value)); }
    Line &yes(const char *name) { return raw(name, "true"); }
    void say(FILE *out) {
        fprintf(out, "{%s}\n", fields.c_str());  // one call: lines of several threads do not mix
        fflush(out);
    }

  private:
    Line &raw(const char *name, const std::string &json) {
        fields += (fields.empty() ? "" : ", ") + quoted(name) + ": " + json;
        return *this;
    }
    std::string fields;
};
