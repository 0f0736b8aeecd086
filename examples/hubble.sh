#!/bin/sh
# Fits the expansion of the universe: velocity = H0 * distance, with a bootstrap for the error of H0.
# Reads nebulae.dat, writes hubble.out (the result and a plot). Knows nothing of BOINC or of virtual machines.
exec awk -v resamples="${RESAMPLES:-1000}" '
function slope(chosen,    i, xy, xx) {
    for (i = 1; i <= n; i++) {
        xy += x[chosen[i]] * y[chosen[i]]
        xx += x[chosen[i]] * x[chosen[i]]
    }
    return xy / xx
}
function root(a,    r, i) { # busybox has no sqrt; this is Newton
    for (r = a; i < 60; i++) r = (r + a / r) / 2
    return r
}
/^[^#]/ { x[++n] = $2; y[n] = $3 }
END {
    for (i = 1; i <= n; i++) all[i] = i
    h0 = slope(all)
    srand(1929)
    for (k = 1; k <= resamples; k++) {
        for (i = 1; i <= n; i++) drawn[i] = int(rand() * n) + 1
        h = slope(drawn); sum += h; squares += h * h
    }
    error = root(squares / resamples - sum / resamples * sum / resamples)
    printf "%d nebulae, %d resamples\n", n, resamples
    printf "H0 = %.1f +- %.1f km/s/Mpc\n", h0, error
    printf "age of the universe 1/H0 = %.2f billion years\n\n", 977.8 / h0
    for (v = 1100; v >= -300; v -= 100) {
        row = sprintf("%5d |", v)
        for (d = 0; d < 44; d++) {
            mark = (int(h0 * d / 20 / 100 + 0.5) * 100 == v) ? "." : " "
            for (i = 1; i <= n; i++)
                if (int(x[i] * 20) == d && int((y[i] + 350) / 100) == int((v + 350) / 100)) mark = "o"
            row = row mark
        }
        sub(/ +$/, "", row)
        print row
    }
    print "km/s  +----------+---------+---------+---------+---"
    print "      0         0.5       1.0       1.5       2.0 Mpc"
}' nebulae.dat >hubble.out
