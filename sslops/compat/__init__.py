"""Losses under the names, arguments and defaults of other packages, running on the ops of sslops.

`sslops.compat.<package>` needs no installed peer; `sslops.patch` puts the classes into one that
is installed. What differs is listed on each package's page in docs/migration.
"""
