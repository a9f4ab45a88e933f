import { type Connection, createConnection, type RowDataPacket } from "mysql2/promise"
import { run } from "./command.ts"
import { aptInstall, findProgram, program } from "./install.ts"
import { portsOf, type Service } from "./service.ts"

const serverPrograms = ["mariadbd", "/usr/sbin/mariadbd", "/usr/local/sbin/mariadbd"]

/** MariaDB runs as root only with this option. */
const asRoot = process.getuid?.() === 0 ? ["--user=root"] : []

/** Tests create more databases beside `user_embeddings`, and users with fewer rights. `admin` changes the server's state. */
const grants = [
  "CREATE DATABASE IF NOT EXISTS user_embeddings",
  "CREATE USER IF NOT EXISTS 'ue'@'%' IDENTIFIED BY 'ue'",
  "GRANT ALL ON `user_embeddings%`.* TO 'ue'@'%' WITH GRANT OPTION",
  "GRANT CREATE USER ON *.* TO 'ue'@'%'",
  "CREATE USER IF NOT EXISTS 'admin'@'%' IDENTIFIED BY 'ue'",
  "GRANT ALL ON *.* TO 'admin'@'%' WITH GRANT OPTION",
]

const using = async <A>(url: string, use: (connection: Connection) => Promise<A>): Promise<A> => {
  const connection = await createConnection({ uri: url, connectTimeout: 2000 })
  try {
    return await use(connection)
  } finally {
    connection.destroy()
  }
}

export const mysql: Service = {
  name: "mysql",
  urlVariable: "MYSQL_URL",
  ports: { mysql: 3306 },
  env: ([ports]) => ({ MYSQL_URL: `mysql://ue:ue@127.0.0.1:${ports?.mysql}/user_embeddings` }),
  probe: (env) =>
    using(env.MYSQL_URL ?? "", async (connection) => {
      const [rows] = await connection.query<Array<RowDataPacket & { version: string }>>(
        "SELECT VERSION() AS version",
      )
      const version = rows[0]?.version ?? ""
      return `${version.includes("MariaDB") ? "MariaDB" : "MySQL"} ${version.split("-")[0]}`
    }),
  docker: {
    compose: "mysql",
    env: {
      MYSQL_ROOT_PASSWORD: "ue",
      MYSQL_DATABASE: "user_embeddings",
      MYSQL_USER: "ue",
      MYSQL_PASSWORD: "ue",
    },
    prepare: (ports) =>
      using(`mysql://root:ue@127.0.0.1:${ports.mysql}`, async (connection) => {
        for (const statement of grants) await connection.query(statement)
      }),
  },
  native: {
    install: (signal) =>
      aptInstall("mariadb-server", () => findProgram(...serverPrograms) !== undefined, signal),
    prepare: async (folder) => {
      await Bun.write(`${folder}/init.sql`, grants.map((statement) => `${statement};\n`).join(""))
      await run([
        program("mariadb-install-db"),
        "--no-defaults",
        `--datadir=${folder}/data`,
        "--skip-test-db",
      ])
    },
    command: (folder, node) => [
      program(...serverPrograms),
      "--no-defaults",
      ...asRoot,
      `--datadir=${folder}/data`,
      `--init-file=${folder}/init.sql`,
      "--socket=mysql.sock", // Relative to the data folder: the path of a socket may not exceed 107 bytes.
      `--pid-file=${folder}/pid`,
      "--bind-address=127.0.0.1",
      `--port=${portsOf(node).mysql}`,
      "--innodb-flush-log-at-trx-commit=1",
      "--innodb-log-file-size=1G", // A small redo log would write pages at every commit.
      "--innodb-buffer-pool-size=4G", // Holds the indexes of millions of rows; the default is 128 MB.
      "--loose-innodb-snapshot-isolation=ON", // The default of MariaDB 11.6 and later: more conflicts, as there.
      "--character-set-server=utf8mb4",
      "--skip-name-resolve",
    ],
  },
}
